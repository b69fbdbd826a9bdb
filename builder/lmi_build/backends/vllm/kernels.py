"""
Which of vLLM's kernels computes a quantized checkpoint, by version and GPU.

vLLM decides as it loads: by the format that `config.json` names, by the GPU, and for
each linear by its sizes on one device. What no kernel takes ends the start; what a
slower kernel takes is still served, mostly in float16 alone. This is the same choice
from headers, so that a plan can say what to write instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.backends.vllm import PACKAGE
from lmi_build.catalog.tables import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lmi_build.values.quant import QuantScheme

FILE = "kernels.toml"
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """
    One kernel of some versions.

    Args:
        since: First version of vLLM that the row stands for.
        packings: Formats on disk that come to it; empty where it is a fallback alone.
        bits: Of one weight.
        capability: Least and greatest compute capability.
        dtypes: Float types it computes in.
        source: Files of vLLM where it was read.
        until: First version that the row does not stand for; empty for the newest.
        weight_dtype: `int` or `float`.
        group_sizes: Input channels per scale, -1 for a whole row; empty for any.
        channelwise: It takes whole rows.
        asymmetric: It takes zero points.
        act_order: It takes channels in activation order.
        activations: Of `QuantScheme.activation_scheme`.
        inputs: Input channels on one device must be a multiple of this.
        outputs: Output channels on one device must be a multiple of this.
        fallback: Rows that take linears of other sizes, in order; the start ends where
            none of this version does.
        keeps_activations: Activations stay in float, whatever the checkpoint says.
    """

    since: str
    packings: tuple[str, ...]
    bits: tuple[int, ...]
    capability: tuple[str, ...]
    dtypes: tuple[str, ...]
    source: str
    until: str = ""
    weight_dtype: str = "int"
    group_sizes: tuple[int, ...] = ()
    channelwise: bool = True
    asymmetric: bool = False
    act_order: bool = False
    activations: tuple[str, ...] = field(default=("none",))
    inputs: int = 1
    outputs: int = 1
    fallback: tuple[str, ...] = ()
    keeps_activations: bool = False

    def in_version(self, vllm: str) -> bool:
        """Whether the row stands for a version."""
        key = version_key(vllm)
        if key < version_key(self.since):
            return False
        return not self.until or key < version_key(self.until)

    def on_gpu(self, capability: str) -> bool:
        """Whether a GPU has it."""
        least, most = self.capability
        return version_key(least) <= version_key(capability) <= version_key(most)

    def holds(self, scheme: QuantScheme) -> bool:
        """Whether its numbers are those of a checkpoint, whatever the format."""
        return (
            scheme.weight_dtype == self.weight_dtype
            and scheme.weight_bits in self.bits
            and (not self.group_sizes or scheme.group_size in self.group_sizes)
            and (self.channelwise or scheme.group_size != -1)
            and (self.asymmetric or scheme.sym)
            and (self.act_order or not scheme.act_order)
            and scheme.activation_scheme in self.activations
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """
    A linear as one device holds it.

    Args:
        name: Module name; of several that vLLM joins, the first.
        num_outputs: Output channels on the device, of all that are joined.
        num_inputs: Input channels on the device.
    """

    name: str
    num_outputs: int
    num_inputs: int


@cache
def kernels() -> Mapping[str, Kernel]:
    """
    Every row by name, in the order in which they are tried.

    Raises:
        ValueError: The table is wrong; a fault of the package.
    """
    return read_rows(Kernel, FILE, package=PACKAGE)


def version_key(text: str) -> tuple[int, ...]:
    """The numbers of a version, as many as compare: `0.6.3.post1` is (0, 6, 3)."""
    return tuple(int(part) for part in _NUMBER.findall(text)[:3])


def candidates(
    scheme: QuantScheme, *, vllm: str, capability: str
) -> Iterator[tuple[str, Kernel]]:
    """
    Kernels that a checkpoint's format and numbers come to, best first.

    Args:
        scheme: Of the checkpoint.
        vllm: Version of vLLM.
        capability: Compute capability of the GPU.
    """
    for name, row in kernels().items():
        if (
            scheme.packing in row.packings
            and row.in_version(vllm)
            and row.on_gpu(capability)
            and row.holds(scheme)
        ):
            yield name, row


def taken(row: Kernel, scheme: QuantScheme, sizes: Sizes) -> bool:
    """Whether a kernel takes a linear of these sizes."""
    group = scheme.group_size
    whole = group == -1 or sizes.num_inputs % group == 0
    fits = sizes.num_inputs % row.inputs == 0 and sizes.num_outputs % row.outputs == 0
    return fits and whole


def misfit(
    row: Kernel, scheme: QuantScheme, linears: Iterable[Sizes], *, vllm: str, dtype: str
) -> Sizes | None:
    """
    The first linear that neither a kernel nor one of its fallbacks takes.

    Args:
        row: The kernel.
        scheme: Of the checkpoint.
        linears: Every quantized linear as one device holds it.
        vllm: Version of vLLM.
        dtype: What vLLM computes in.
    """
    others = [kernels()[name] for name in row.fallback]
    usable = [
        row,
        *(
            other
            for other in others
            if other.in_version(vllm) and dtype in other.dtypes and other.holds(scheme)
        ),
    ]
    for sizes in linears:
        if not any(taken(kernel, scheme, sizes) for kernel in usable):
            return sizes
    return None
