"""Stand-in of torch-neuronx: real signatures, computed by the processor."""

import os

__version__ = "2.1.2.2.3.1"

__all__ = ["DataParallel", "dynamic_batch", "trace"]

# Decoders never trace, and their tests start many processes: torch takes seconds.
if "STANDIN_WITHOUT_TRACE" not in os.environ:
    from ._trace import DataParallel, dynamic_batch, trace
