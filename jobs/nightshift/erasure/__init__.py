"""Erasure of one person from everything that Nightshift holds."""
