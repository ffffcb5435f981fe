"""Whether what landed last is fit to be built on."""
