"""Stand-in of torch-neuronx: real signatures, computed by the processor."""

from ._trace import DataParallel, dynamic_batch, trace

__version__ = "2.1.2.2.3.1"

__all__ = ["DataParallel", "dynamic_batch", "trace"]
