"""Run metrics: numbers, tables, progress and traces."""
