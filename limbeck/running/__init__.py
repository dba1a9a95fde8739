"""One run in its directory, stages, arms."""
