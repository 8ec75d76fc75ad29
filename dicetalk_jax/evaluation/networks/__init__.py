"""Networks that measure frames."""
