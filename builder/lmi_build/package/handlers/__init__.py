"""Handler files that are shipped inside artifacts; nothing here is imported."""
