"""Measurements side by side: limbeck against its peers, against the machine's own ceiling, and against straight lines."""
