"""The cast, its lessons, the one training step."""
