"""A model, a kind of data and an optimizer, added as a contributor adds them: declared, and built."""
