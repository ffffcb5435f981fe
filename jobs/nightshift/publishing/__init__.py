"""Scores to the warehouse: staged, audited, and shown to readers all at once."""
