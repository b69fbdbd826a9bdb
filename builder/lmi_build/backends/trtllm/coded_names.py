"""
Which linears are codes: in a checkpoint that is there, or after `quantize` has run.

Light: the plan asks, and it reads names alone.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.linear_checks import WEIGHT_ONLY
from lmi_build.catalog.architectures import architectures
from lmi_build.checkpoint.formats.layout import MARKS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.values.model import ModelGeometry
    from lmi_build.values.quant import QuantScheme

# From here on kernels read weight-only codes in an order that differs by release.
_HOPPER = (9, 0)


def coded_modules(names: Iterable[str], scheme: QuantScheme | None) -> frozenset[str]:
    """
    Linears that a checkpoint holds as codes.

    Args:
        names: Its tensors.
        scheme: Its format; None where everything is float.
    """
    if scheme is None or scheme.packing == "none":
        return frozenset()
    mark = f".{MARKS[scheme.packing]}"
    return frozenset(x.removesuffix(mark) for x in names if x.endswith(mark))


def planned_modules(
    names: Iterable[str], geometry: ModelGeometry, ignore: Iterable[str]
) -> frozenset[str]:
    """
    Linears that `quantize` will make codes of.

    Args:
        names: Tensors of the float model.
        geometry: Its sizes; its architecture is one of the catalogue's.
        ignore: `quantize.ignore`: names or `*` patterns of modules.
    """
    held, patterns = frozenset(names), tuple(ignore)
    architecture = architectures()[geometry.architecture].locate(held)
    every = (
        f"{architecture.block(layer)}.{part}"
        for layer in range(geometry.num_layers)
        for part in architecture.linears(held, layer)
    )
    return frozenset(
        name
        for name in every
        if not any(fnmatchcase(name, pattern) for pattern in patterns)
    )


def float_weights(algorithm: str, compute_capability: str) -> bool:
    """Whether weight-only linears go out as floats, for `trtllm-build` to round."""
    if algorithm not in WEIGHT_ONLY or not compute_capability:
        return False
    major, minor = compute_capability.split(".")[:2]
    return (int(major), int(minor)) >= _HOPPER
