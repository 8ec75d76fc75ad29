"""Many videos from one list."""
