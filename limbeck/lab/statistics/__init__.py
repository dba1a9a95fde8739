"""Means over seeds and documents, and verdicts."""
