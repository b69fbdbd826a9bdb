"""Facts that change with time, as data, and their readers."""
