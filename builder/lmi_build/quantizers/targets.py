"""
Which tensors a recipe quantizes; `checkpoint.formats` says what each becomes on disk.

Pure and light: the planner uses it to check and to estimate, the worker to decide, so
that both always agree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lmi_build.checkpoint.formats.config import LM_HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lmi_build.catalog.architectures import Architecture

FLOAT_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})
# A matrix inside a numbered block: what int8 rounds where no map is known.
_BLOCK_MATRIX = re.compile(r"^(?P<block>.*?\.\d+)\.(?P<rest>.+)\.weight$")
# Small matrices that steer instead of compute, and tables that look like matrices;
# rounding them costs more than it saves.
_KEPT = frozenset(
    {
        "gate",
        "shared_expert_gate",
        "relative_attention_bias",
        "embed_positions",
        "embed_tokens",
    }
)
# Whatever lies below a module of this name steers as well.
_ROUTER = "router"
# These store linears as [in, out], and no map says which.
TRANSPOSED_MODEL_TYPES = frozenset({"openai-gpt", "decision_transformer", "imagegpt"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """
    One linear layer that becomes smaller.

    Args:
        name: Module name, without `.weight`.
        block: Prefix of the block it is in.
        num_outputs: Output channels.
        num_inputs: Input channels.
        transposed: Stored as [I, O] instead of [O, I].
        shared: Tensor that it shares with the embedding, whose values it takes; empty
            where it has a weight of its own.
    """

    name: str
    block: str
    num_outputs: int
    num_inputs: int
    transposed: bool = False
    shared: str = ""

    @property
    def is_head(self) -> bool:
        """Whether it stands behind all blocks, by itself."""
        return self.block == self.name

    @property
    def source(self) -> str:
        """The tensor that its weights are in."""
        return self.shared or f"{self.name}.weight"


def is_ignored(name: str, patterns: Iterable[str]) -> bool:
    """Whether a module name equals a pattern or matches it as a wildcard."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


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
            routers and tables.
    """
    if architecture is not None:
        yield from _mapped(shapes, architecture.locate(shapes))
        return
    for name in sorted(shapes, key=_natural):
        dtype, shape_OI = shapes[name]
        match = _BLOCK_MATRIX.match(name)
        if match is None or len(shape_OI) != len("OI") or dtype not in FLOAT_DTYPES:
            continue
        modules = match["rest"].split(".")
        if modules[-1] not in _KEPT and _ROUTER not in modules:
            module = name.removesuffix(".weight")
            yield _linear(module, match["block"], shape_OI, transposed=False)


def head_of(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]], architecture: Architecture
) -> Linear | None:
    """
    The head, if there is one by the name that readers of quantized heads know.

    Args:
        shapes: Tensor name to dtype and shape.
        architecture: The map.
    """
    if architecture.head != LM_HEAD:
        return None
    own = f"{LM_HEAD}.weight"
    shared = "" if own in shapes else f"{architecture.locate(shapes).embedding}.weight"
    num_outputs, num_inputs = shapes[shared or own][1]
    return Linear(
        name=LM_HEAD,
        block=LM_HEAD,
        num_outputs=num_outputs,
        num_inputs=num_inputs,
        shared=shared,
    )


def _mapped(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]], architecture: Architecture
) -> Iterator[Linear]:
    index = 0
    while parts := architecture.linears(shapes, index):
        block = architecture.block(index)
        for part in parts:
            _, shape = shapes[f"{block}.{part}.weight"]
            yield _linear(
                f"{block}.{part}", block, shape, transposed=architecture.transposed
            )
        index += 1


def _linear(
    name: str, block: str, shape: tuple[int, ...], *, transposed: bool
) -> Linear:
    outputs, inputs = reversed(shape) if transposed else shape
    return Linear(
        name=name,
        block=block,
        num_outputs=outputs,
        num_inputs=inputs,
        transposed=transposed,
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
    lm_head: bool = False,
) -> tuple[Linear, ...]:
    """`candidates` without those the recipe ignores; with the head where it says so."""
    patterns = tuple(ignore)
    chosen = [
        linear
        for linear in candidates(shapes, architecture=architecture)
        if not is_ignored(linear.name, patterns)
    ]
    head = head_of(shapes, architecture) if lm_head and architecture else None
    return (*chosen, *(() if head is None else (head,)))
