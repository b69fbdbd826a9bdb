"""NeuronX: graphs for Inferentia and Trainium, and what serves them."""

# Where its data files lie.
PACKAGE = __name__
