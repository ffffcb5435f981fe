"""Feature groups: which features each source gives an entity."""
