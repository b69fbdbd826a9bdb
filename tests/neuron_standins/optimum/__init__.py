"""Stands in for the namespace of optimum."""
