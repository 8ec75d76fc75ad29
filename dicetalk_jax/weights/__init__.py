"""A weights folder: its networks, what is in it, where it comes from."""
