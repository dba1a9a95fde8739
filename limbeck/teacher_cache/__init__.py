"""Teachers' answers on disk."""
