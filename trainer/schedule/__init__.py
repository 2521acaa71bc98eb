"""Schedules as plain data: actions, the recipes that order them, and what is computed from the lists."""
