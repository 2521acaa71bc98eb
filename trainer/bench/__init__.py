"""Benchmarks: of schedules, and against other trainers."""
