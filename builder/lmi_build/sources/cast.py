"""
Change the float type of raw little-endian weights.

numpy has no bfloat16, so it is handled as the upper half of a float32. Rounding is to
nearest, ties to even, as in hardware and in PyTorch; the tests hold the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMPY = {"float64": "<f8", "float32": "<f4", "float16": "<f2"}


def cast_bytes(data: bytes | memoryview, *, source: str, target: str) -> bytes:
    """
    Cast a run of elements.

    Args:
        data: Little-endian elements of `source`.
        source: One of float64, float32, float16, bfloat16.
        target: The same.
    """
    if source == target:
        return bytes(data)
    if source == "bfloat16":
        half = np.frombuffer(data, "<u2")
        wide = (half.astype("<u4") << np.uint32(16)).view("<f4")
    else:
        wide = np.frombuffer(data, _NUMPY[source])
    return floats_to_bytes(wide, target)


def floats_to_bytes(values: NDArray[Any], target: str) -> bytes:
    """Elements of a float array as little-endian bytes of another float type."""
    if target == "bfloat16":
        return _to_bfloat16(values).tobytes()
    # A weight beyond float16's 65,504 becomes infinite, as PyTorch does; numpy would
    # also warn.
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(values, _NUMPY[target]).tobytes()


def _to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    with np.errstate(over="ignore", under="ignore"):
        bits = np.ascontiguousarray(values, "<f4").view("<u4")
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype("<u2")
    # A NaN's payload must not round up into infinity.
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    rounded[is_nan] = 0x7FC0
    return rounded
