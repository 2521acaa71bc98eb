"""What a run tells: numbers, tables and progress."""
