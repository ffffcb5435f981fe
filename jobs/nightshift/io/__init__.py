"""Everything that touches the outside: Postgres, the lake, the model registry."""
