"""Where one published row comes from."""
