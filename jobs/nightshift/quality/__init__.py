"""Whether what landed, and what features are made of, is fit to be built on."""
