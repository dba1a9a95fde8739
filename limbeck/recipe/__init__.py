"""What a user may say. No torch."""
