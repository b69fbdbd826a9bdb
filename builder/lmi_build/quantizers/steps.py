"""
What a decoder block and the one who quantizes it agree on.

A block hands out its linears in steps. The linears of a step share one input, which
the step makes chunk by chunk for all samples. Between the last chunk of one step and
the first chunk of the next the weights may change, and whatever is computed later uses
them: so one forward pass serves a whole block, whichever method looks at it.

Shape suffixes: N samples, S samples of one chunk, L tokens of a sample, T tokens of a
chunk, t tokens of an expert, W any width, I input channels, O output channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from torch import Tensor


class Activations(Protocol):
    """Values of all samples, [N, L, W], in memory or spilled to disk."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Samples, tokens, width."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""

    def load(self, part: slice) -> Tensor:
        """Some samples [S, L, W]; may be a view, to be changed only to be stored."""

    def store(self, part: slice, x_SLW: Tensor) -> None:
        """Replace some samples."""


class Room(Protocol):
    """Scratch for all samples; a slot is reused by the next call that names it."""

    def __call__(self, width: int, slot: int = 0) -> Activations:
        """Room of one width; what the slot held before is lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Absorb:
    """
    Where a positive scale per input channel can be taken out of a step's inputs.

    Dividing what `kind` and `name` say by s and multiplying the input channels of the
    step's linears, and of the readers, by s leaves the block's output as it is.

    Args:
        kind: `norm`: its weight, and its bias if it has one, are divided. `linear`: its
            output rows, and their biases, are divided.
        name: The norm or the linear, relative to the block.
        rows_I: For each input channel the channel of the norm, or the output row of the
            linear, that feeds it, int64 [I]. Channels with the same row must get the
            same scale: with grouped queries one row of v feeds several channels of o.
            None is the identity.
        readers: Linears kept in float (router, gate of a shared expert) that read the
            same values.
        offset: What the norm adds to its stored weight before it multiplies (1.0 for
            Gemma): the stored weight becomes `(weight + offset) / s - offset`.
    """

    kind: str
    name: str
    rows_I: Tensor | None
    readers: tuple[str, ...] = ()
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """
    Linears that share one input.

    Args:
        parts: The linears, relative to the block; none in a step that is only there to
            search a smoothing.
        searched: The linears a smoothing must weigh: `parts`, or those of all experts;
            none where a step before had the same `absorb` and its scale holds.
        num_inputs: I.
        chunks: Each makes one chunk [T, I], in the dtype of the computation and to be
            read only. To be called once each, in any order and by several threads at
            once, all of them before the next step is asked for.
        absorb: Where a scale of the input channels can go, if it can.
        again: The same chunks once more, after all of `chunks` were made and before
            the next step is asked for; they change nothing.
        expert: Which expert, if the linears belong to one; its chunks hold the tokens
            that were sent to it, of which there may be none.
        token_t: Numbers of an expert's tokens, rising; None for all tokens in order.
    """

    parts: tuple[str, ...]
    searched: tuple[str, ...]
    num_inputs: int
    chunks: Sequence[Callable[[], Tensor]]
    absorb: Absorb | None
    again: Sequence[Callable[[], Tensor]]
    expert: int | None = None
    token_t: Tensor | None = None

    def inputs(self) -> Iterator[Tensor]:
        """The chunks, one after another."""
        return (make() for make in self.chunks)
