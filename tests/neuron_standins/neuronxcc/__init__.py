"""Stand-in of neuronx-cc: its version, which the real module has with a suffix."""

import os

__version__ = os.environ.get("STANDIN_CC", "2.16.372.0+4a9b2326")
