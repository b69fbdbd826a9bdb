"""Frozen values of the domain, on the standard library alone."""
