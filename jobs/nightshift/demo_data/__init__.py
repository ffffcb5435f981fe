"""A shop that does not exist, as a landing zone in the format of the real one."""
