"""TensorRT-LLM: checkpoints, engines, what serves them."""
