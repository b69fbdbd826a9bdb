"""Stands in for a package of NxD Inference."""
