"""
Which tensors a recipe quantizes, and what each becomes on disk.

Pure and light: the planner uses it to check and to estimate, the worker to decide, so
that both always agree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lmi_build.catalog.architectures import architectures
from lmi_build.checkpoint.writer import TensorPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lmi_build.catalog.architectures import Architecture

WORD_BITS = 32
FLOAT_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})
# A matrix inside a numbered block: what int8 rounds where no map is known.
_BLOCK_MATRIX = re.compile(r"^(?P<block>.*?\.\d+)\.(?P<rest>.+)\.weight$")
# Small matrices that steer instead of compute; rounding them costs more than it saves.
_ROUTERS = ("gate", "router", "shared_expert_gate")
# These store linears as [in, out]; their names do not tell.
TRANSPOSED_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "gpt_bigcode"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """
    One linear layer that becomes smaller.

    Args:
        name: Module name, without `.weight`.
        block: Prefix of the block it is in.
        num_outputs: Rows of the weight.
        num_inputs: Columns of the weight.
    """

    name: str
    block: str
    num_outputs: int
    num_inputs: int


def is_ignored(name: str, patterns: Iterable[str]) -> bool:
    """Whether a module name equals a pattern or matches it as a wildcard."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def find_architecture(config: Mapping[str, object]) -> Architecture | None:
    """The map of a model's architecture, if there is one."""
    names = config.get("architectures")
    if not isinstance(names, list | tuple):
        return None
    return next((architectures()[n] for n in names if n in architectures()), None)


def candidates(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    architecture: Architecture | None,
) -> Iterator[Linear]:
    """
    Every linear that could be quantized, in the order of computation.

    Args:
        shapes: Tensor name to dtype and shape.
        architecture: The map; None takes every matrix of a numbered block, except
            routers.
    """
    if architecture is not None:
        index = 0
        while any(
            f"{architecture.block(index)}.{part}.weight" in shapes
            for part in architecture.linears
        ):
            block = architecture.block(index)
            for part in architecture.linears:
                shape = shapes.get(f"{block}.{part}.weight")
                if shape is not None:
                    yield _linear(f"{block}.{part}", block, shape[1])
            index += 1
        return
    for name in sorted(shapes, key=_natural):
        dtype, shape_OI = shapes[name]
        match = _BLOCK_MATRIX.match(name)
        if match is None or len(shape_OI) != len("OI") or dtype not in FLOAT_DTYPES:
            continue
        if match["rest"].rpartition(".")[2] not in _ROUTERS:
            yield _linear(name.removesuffix(".weight"), match["block"], shape_OI)


def _linear(name: str, block: str, shape_OI: tuple[int, ...]) -> Linear:
    return Linear(
        name=name, block=block, num_outputs=shape_OI[0], num_inputs=shape_OI[1]
    )


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts block 10 after block 9."""
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in name.split(".")
    )


def select(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    architecture: Architecture | None,
    ignore: Iterable[str],
) -> tuple[Linear, ...]:
    """`candidates` without those the recipe ignores."""
    patterns = tuple(ignore)
    return tuple(
        linear
        for linear in candidates(shapes, architecture=architecture)
        if not is_ignored(linear.name, patterns)
    )


def group_len(linear: Linear, group_size: int) -> int:
    """Input channels that share a scale."""
    return linear.num_inputs if group_size == -1 else group_size


def result_plans(
    linear: Linear, *, bits: int, group_size: int
) -> tuple[TensorPlan, ...]:
    """What one linear becomes in the AutoGPTQ format, version 1."""
    num_groups = linear.num_inputs // group_len(linear, group_size)
    rows = linear.num_inputs * bits // WORD_BITS
    columns = linear.num_outputs * bits // WORD_BITS
    return (
        TensorPlan(
            name=f"{linear.name}.qweight",
            dtype="int32",
            shape=(rows, linear.num_outputs),
        ),
        TensorPlan(
            name=f"{linear.name}.qzeros", dtype="int32", shape=(num_groups, columns)
        ),
        TensorPlan(
            name=f"{linear.name}.scales",
            dtype="float16",
            shape=(num_groups, linear.num_outputs),
        ),
        TensorPlan(
            name=f"{linear.name}.g_idx", dtype="int32", shape=(linear.num_inputs,)
        ),
    )


def checkpoint_plans(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    linears: Iterable[Linear],
    *,
    bits: int,
    group_size: int,
) -> tuple[TensorPlan, ...]:
    """Every tensor of the result: quantized ones and those that pass through."""
    chosen = {f"{linear.name}.weight": linear for linear in linears}
    plans: list[TensorPlan] = []
    for name, (dtype, shape) in shapes.items():
        if name in chosen:
            plans += result_plans(chosen[name], bits=bits, group_size=group_size)
        else:
            plans.append(TensorPlan(name=name, dtype=dtype, shape=shape))
    return tuple(plans)
