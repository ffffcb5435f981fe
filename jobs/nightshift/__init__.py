"""Nightshift: batch machine learning whose predictions are in your Postgres by morning."""
