"""A backend in a distribution of its own: Llama's checkpoint, computed in NumPy."""
