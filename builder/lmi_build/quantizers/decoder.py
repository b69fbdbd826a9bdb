r"""
One decoder block, computed in the steps between which its linears change.

    x --norm--> [q k v] --attention--> [o] --+--norm--> [gate up] --act--> [down] --+-->
     \\_______________________________________/ \\____________________________________/

The linears of a step share one input. Quantizing step after step, each with inputs
that the steps before already made with their quantized weights, costs one forward pass
in all: no linear is ever run twice. Of all samples only the residual stream and the
widest input inside the block are kept.

Where attention and the feed-forward part read the same residual (`parallel`), both
inputs come first and both sums last. Where a router sends tokens to experts, every
expert has steps of its own (`experts`).

Shape suffixes: S samples of one chunk, L tokens of a sample, T tokens of a chunk, D
residual width, K key and value heads, H head width, F feed-forward width, I inputs of
a linear.

Source: transformers 5.23.0, the files named in `catalog/architectures.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from lmi_build.decoders.activation_functions import ACTIVATIONS
from lmi_build.quantizers import experts
from lmi_build.quantizers.absorbing import (
    absorb_in_norm,
    absorb_in_up,
    absorb_in_value,
)
from lmi_build.quantizers.block_attention import AttentionTables, attention
from lmi_build.quantizers.coded import CodedLinear, multiply
from lmi_build.quantizers.lanes import Lanes
from lmi_build.quantizers.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lmi_build.catalog.architectures import Architecture
    from lmi_build.decoders.decoder_config import DecoderConfig
    from lmi_build.quantizers.steps import Absorb, Activations, Room

Part = TypeVar("Part")


@dataclass(kw_only=True)
class Block:
    """
    One block's tensors, in the dtype and on the device of the computation.

    Args:
        architecture: The map.
        config: The numbers.
        index: Which block.
        weights: Linears [O, I], norms and routers by name, relative to the block; a
            bias is `<name>.bias`.
        coded: Linears computed with 8-bit products instead of their weight: with which,
            and the outputs that are theirs.
        leaves: Whether what leaves the block is asked for; the last one's is not.
        lanes: What chunks that belong to no step are dealt out to.
        kv_observer: Called with keys (rotated) and values [S, K, L, H] of every chunk.
        tables: What attention needs for the length of the samples, once it was asked.
    """

    architecture: Architecture
    config: DecoderConfig
    index: int
    weights: dict[str, Tensor]
    coded: dict[str, tuple[CodedLinear, slice]] = field(default_factory=dict)
    leaves: bool = True
    lanes: Lanes = field(default_factory=Lanes)
    kv_observer: Callable[[Tensor, Tensor], None] | None = None
    tables: AttentionTables | None = field(default=None, init=False)

    def steps(
        self,
        x: Activations,
        out: Activations,
        *,
        parts: Sequence[slice],
        room: Room,
        smoothing: bool,
    ) -> Iterator[Step]:
        """
        Take all samples through the block, step after step.

        While a step is with the caller, weights may be replaced; what is computed
        later uses them. The chunks that a step yielded are kept as they were: after a
        step, `weights` of its linears must be what belongs to those chunks, with any
        scale of the input channels undone. A step without linears is different: there
        the norm, its readers and the searched linears may change together.

        Args:
            x: What enters, [N, L, D].
            out: What leaves; may be `x`.
            parts: Chunks of samples, in order, that together are all of them.
            room: Scratch; slots 0 and 1 are used.
            smoothing: Also hand out steps that only search a smoothing.
        """
        if self.config.parallel:
            return self._parallel(x, out, parts, room)
        return self._sequential(x, out, parts, room, smoothing=smoothing)

    def _sequential(
        self,
        x: Activations,
        out: Activations,
        parts: Sequence[slice],
        room: Room,
        *,
        smoothing: bool,
    ) -> Iterator[Step]:
        arch = self.architecture
        yield self.step(
            arch.projections,
            lambda part: self.norm(self.attention_norm, x.load(part)),
            parts,
            absorb_in_norm(arch, self.attention_norm),
        )
        mixed = room(self.num_inputs(arch.output), slot=0)
        yield self._output_step(x, mixed, parts)

        def add_attention(part: slice) -> Tensor:
            y_SLD = x.load(part) + self._added(
                arch.output, mixed.load(part), arch.attention_post_norm
            )
            out.store(part, y_SLD)
            return y_SLD

        if self.router:
            yield from experts.steps(
                self, add_attention, out, parts=parts, room=room, smoothing=smoothing
            )
            return
        yield self.step(
            arch.widening,
            lambda part: self.norm(self.mlp_norm, add_attention(part)),
            parts,
            absorb_in_norm(arch, self.mlp_norm),
            again=lambda part: self.norm(self.mlp_norm, out.load(part)),
        )
        inner = room(self.num_inputs(arch.down), slot=0)

        def widen(part: slice) -> Tensor:
            y_SLF = self.widen(arch.widening, self.norm(self.mlp_norm, out.load(part)))
            inner.store(part, y_SLF)
            return y_SLF

        absorb = absorb_in_up(arch, arch.widening, self.weights)
        yield self.step((arch.down,), widen, parts, absorb, again=inner.load)
        self._add_mlp(out, inner, parts)

    def _parallel(
        self, x: Activations, out: Activations, parts: Sequence[slice], room: Room
    ) -> Iterator[Step]:
        arch = self.architecture
        is_shared = self.mlp_norm == self.attention_norm
        yield self.step(
            (*arch.projections, *(arch.widening if is_shared else ())),
            lambda part: self.norm(self.attention_norm, x.load(part)),
            parts,
            absorb_in_norm(arch, self.attention_norm),
        )
        if not is_shared:
            yield self.step(
                arch.widening,
                lambda part: self.norm(self.mlp_norm, x.load(part)),
                parts,
                absorb_in_norm(arch, self.mlp_norm),
            )
        mixed = room(self.num_inputs(arch.output), slot=1)
        yield self._output_step(x, mixed, parts)
        inner = room(self.num_inputs(arch.down), slot=0)

        def widen(part: slice) -> Tensor:
            x_SLD = x.load(part)
            y_SLF = self.widen(arch.widening, self.norm(self.mlp_norm, x_SLD))
            inner.store(part, y_SLF)
            added = self._added(arch.output, mixed.load(part), arch.attention_post_norm)
            out.store(part, x_SLD + added)
            return y_SLF

        absorb = absorb_in_up(arch, arch.widening, self.weights)
        yield self.step((arch.down,), widen, parts, absorb, again=inner.load)
        self._add_mlp(out, inner, parts)

    def _output_step(
        self, x: Activations, mixed: Activations, parts: Sequence[slice]
    ) -> Step:
        def mix(part: slice) -> Tensor:
            y_SLI = attention(self, self.norm(self.attention_norm, x.load(part)))
            mixed.store(part, y_SLI)
            return y_SLI

        arch = self.architecture
        absorb = absorb_in_value(arch, self.config)
        return self.step((arch.output,), mix, parts, absorb, again=mixed.load)

    def _add_mlp(
        self, out: Activations, inner: Activations, parts: Sequence[slice]
    ) -> None:
        arch = self.architecture
        if not self.leaves:
            return

        def add(part: slice) -> None:
            y_SLD = self._added(arch.down, inner.load(part), arch.mlp_post_norm)
            out.store(part, out.load(part) + y_SLD)

        self.lanes.map(add, parts)

    @property
    def attention_norm(self) -> str:
        """The norm before attention; empty for none."""
        return self._first(self.architecture.attention_norm)

    @property
    def mlp_norm(self) -> str:
        """The norm before the feed-forward part; empty for none."""
        own = self._first(self.architecture.mlp_norm)
        return self.attention_norm if self.config.parallel and not own else own

    @property
    def router(self) -> str:
        """What chooses experts; empty in a dense block."""
        return self._first(self.architecture.router)

    def _first(self, names: Sequence[str]) -> str:
        return next((name for name in names if name in self.weights), "")

    def num_inputs(self, name: str) -> int:
        """Input channels of a linear."""
        return self.weights[name].shape[1]

    def step(
        self,
        linears: tuple[str, ...],
        make: Callable[[Part], Tensor],
        parts: Sequence[Part],
        absorb: Absorb | None,
        *,
        searched: tuple[str, ...] | None = None,
        again: Callable[[Part], Tensor] | None = None,
        expert: int | None = None,
        token_t: Tensor | None = None,
    ) -> Step:
        """A step of this block; what is made may have any leading dimensions."""
        searched = linears if searched is None else searched
        return Step(
            parts=linears,
            searched=searched,
            num_inputs=self.num_inputs((linears or searched)[0]),
            chunks=[partial(_make_rows, make, part) for part in parts],
            absorb=absorb,
            again=[partial(_make_rows, again or make, part) for part in parts],
            expert=expert,
            token_t=token_t,
        )

    def linear(self, name: str, x: Tensor) -> Tensor:
        """One linear of the block."""
        return self.linears((name,), x)[0]

    def linears(self, names: Sequence[str], x: Tensor) -> tuple[Tensor, ...]:
        """Linears that share an input; those quantized together share a product."""
        found = [self.coded[name] for name in names if name in self.coded]
        if not found:
            return tuple(
                functional.linear(
                    x, self.weights[name], self.weights.get(f"{name}.bias")
                )
                for name in names
            )
        together = all(coded is found[0][0] for coded, _ in found)
        if len(found) < len(names) or not together:
            return tuple(self.linear(name, x) for name in names)
        products = multiply(found[0][0], x, [columns for _, columns in found])
        for name, y in zip(names, products, strict=True):
            bias = self.weights.get(f"{name}.bias")
            if bias is not None:
                y.add_(bias)
        return products

    def norm(self, name: str, x: Tensor) -> Tensor:
        """One norm over the last dimension; with an empty name, `x` itself."""
        if not name:
            return x
        weight = self.weights[name]
        kind, eps = self.architecture.norm, self.config.norm_eps
        if kind == "layer":
            bias = self.weights.get(f"{name}.bias")
            return functional.layer_norm(x, weight.shape, weight, bias, eps)
        wide = torch.promote_types(x.dtype, torch.float32)
        factor = weight if kind == "rms" else 1.0 + weight.to(wide)
        # The sums in one pass, the rest in place; torch's own takes a quarter longer.
        y = x.to(wide)
        size = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        turn = size.square_().div_(y.shape[-1]).add_(eps).rsqrt_()
        return torch.mul(y, turn).mul_(factor).to(x.dtype)

    def widen(self, names: tuple[str, ...], x: Tensor) -> Tensor:
        """From the feed-forward part's input to the down projection's input."""
        act = ACTIVATIONS[self.config.activation]
        if len(names) == 2:  # noqa: PLR2004 - gate and up
            gate, up = self.linears(names, x)
            return act(gate).mul_(up)
        y = self.linear(names[0], x)
        if names[0] == self.architecture.fused_gate_up:
            gate, up = y.chunk(2, dim=-1)
            return act(gate).mul_(up)
        return act(y)

    def _added(self, name: str, x: Tensor, post_norm: str) -> Tensor:
        """What one part of the block adds to the residual stream."""
        y = self.norm(post_norm, self.linear(name, x))
        return y * self.residual_scale if self.residual_scale != 1.0 else y

    @property
    def residual_scale(self) -> float:
        """What is added to the residual stream is multiplied by this."""
        return self.config.residual_scale


def _make_rows(make: Callable[[Part], Tensor], part: Part) -> Tensor:
    """A chunk as [T, I]."""
    return make(part).flatten(0, -2)
