"""Serving an artifact over HTTP with the handler that it ships."""
