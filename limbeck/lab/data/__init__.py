"""Run directories as values."""
