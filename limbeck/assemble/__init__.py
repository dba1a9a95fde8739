"""Words become objects."""
