"""
Whether the linears of a folder have a place in the PyTorch backend, from sizes alone.

The backend joins q, k and v, and gate and up, and asks of the joined linear whether it
stays in float: one part that does takes the others along. Asked by the plan, and by the
worker again.

Source: TensorRT-LLM of October 2025, `_torch/models/modeling_utils.py`
(`exclude_modules`), `_torch/modules/linear.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

# Algorithms of the mixed-precision kernels.
W4A16_AWQ = "W4A16_AWQ"
W8A16 = "W8A16"
# Linears that the backend joins, by the last part of their names; all must be there.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# The mixed-precision kernels take their matrices in tiles of so many channels.
TILE = 64
_HEAD = "lm_head"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """
    Why a linear has no place.

    Args:
        message: What is wrong, with the numbers.
        path: What of a recipe decides it, where the model was float.
        hint: What to write there.
    """

    message: str
    path: str
    hint: str


def joined_group(name: str, names: Collection[str]) -> tuple[str, ...]:
    """
    The linears that are joined with one, in order, or nothing.

    Args:
        name: Module name.
        names: Every linear of the checkpoint, quantized or not.
    """
    parent, _, last = name.rpartition(".")
    for group in JOINED:
        whole = tuple(f"{parent}.{part}" for part in group)
        if last in group and all(part in names for part in whole):
            return whole
    return ()


def linear_faults(
    linears: Mapping[str, tuple[int, int]], every: Collection[str], algo: str
) -> Iterator[Fault]:
    """
    Yield why quantized linears have no place.

    Args:
        linears: Those that are quantized: outputs and inputs by name.
        every: Every linear, quantized or not.
        algo: `quant_algo`.
    """
    for name, sizes in linears.items():
        for what, count in zip(("output", "input"), sizes, strict=True):
            if algo in {W4A16_AWQ, W8A16} and count % TILE:
                yield Fault(
                    message=f"`{name}` has {count} {what} channels; {algo} has kernels"
                    f" for multiples of {TILE}",
                    path="quantize.method",
                    hint="use `method: fp8` with a GPU that has it, or `method: none`",
                )
        if name.rpartition(".")[2] == _HEAD:
            yield Fault(
                message=f"`{name}` is quantized; the backend reads a float head",
                path="quantize.ignore",
                hint=f"add `{_HEAD}` to `ignore`",
            )
        group = joined_group(name, every)
        floats = [part for part in group if part not in linears]
        first = next((part for part in group if part in linears), "")
        if floats and name == first:
            yield Fault(
                message=f"{join_words(floats, last='and')} left in float: the"
                f" backend joins {join_words(group, last='and')}, and then takes all"
                " for float",
                path="quantize.ignore",
                hint=f"ignore {join_words(group, last='and')}, or none of them",
            )
