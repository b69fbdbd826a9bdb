"""The version that is stood in for, and the machine."""

from __future__ import annotations

import os

__version__ = os.environ.get("STANDIN_OPTIMUM_NEURON", "0.0.24")
VERSION = tuple(int(part) for part in __version__.split("."))
NEWER = VERSION >= (0, 4)


def available_cores() -> int:
    """Cores of the machine."""
    return int(os.environ.get("STANDIN_NEURON_CORES", "0"))


def compiler_version() -> str:
    """Version of the compiler."""
    import neuronxcc

    return str(neuronxcc.__version__)
