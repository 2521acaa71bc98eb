"""Ranks: who they are, how they find, wake and wait for each other, and how they end."""
