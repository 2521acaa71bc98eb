"""Checkpoints, and warm starts from them."""
