"""Where finished work is kept, by content."""
