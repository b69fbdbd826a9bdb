"""Request logs: read once, counted, forgotten."""
