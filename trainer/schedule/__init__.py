"""Schedules as plain data: actions, the orders, and what is computed from them."""
