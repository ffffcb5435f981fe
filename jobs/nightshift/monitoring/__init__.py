"""What happened to the predictions once the truth was known."""
