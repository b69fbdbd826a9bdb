"""Proving that an artifact is what its manifest says, before anyone relies on it."""
