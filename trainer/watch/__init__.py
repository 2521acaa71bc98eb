"""Watches the ranks of a run: who stands still, for whom it waits, and why a rank is gone."""
