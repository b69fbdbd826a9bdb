"""Pure tensor functions: how weights are rounded, packed and compared."""
