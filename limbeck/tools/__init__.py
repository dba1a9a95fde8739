"""Commands on any model folder."""
