"""TensorRT-LLM: checkpoints, engines, what serves them."""

# Where its data files lie.
PACKAGE = __name__
