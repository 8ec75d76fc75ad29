"""Makes many videos from one list."""
