"""Many nights at once: what a backfill would do, before it does it."""
