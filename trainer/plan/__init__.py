"""Everything about a run that needs no ranks: who holds what, in which order, in how much memory and time."""
