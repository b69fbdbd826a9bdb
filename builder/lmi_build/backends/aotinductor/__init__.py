"""Native code from PyTorch's own compiler: a package of graphs and its weights."""
