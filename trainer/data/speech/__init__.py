"""Recorded speech and its transcripts."""
