"""Copies of rows with words replaced."""
