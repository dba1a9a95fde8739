"""The loop, and what is kept of it."""
