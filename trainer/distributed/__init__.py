"""Ranks: who they are, how they find, wake and wait for one another, and how they exit."""
