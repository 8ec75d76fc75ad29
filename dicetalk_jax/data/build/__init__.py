"""Videos of any layout, or the drawn world -> records."""
