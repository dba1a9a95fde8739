"""What is asked of learners."""
