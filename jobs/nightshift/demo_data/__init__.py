"""A shop and cards that do not exist, as a landing zone in the formats of the real ones."""
