"""Data as numbered samples."""
