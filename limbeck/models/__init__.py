"""Hugging Face models: taps, students, surgery."""
