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
residual width, N query heads, K key and value heads, H head width, F feed-forward
width, I inputs of a linear.

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
from lmi_build.decoders.attention import Scores, alibi_bias, attend
from lmi_build.decoders.decoder_config import DecoderConfig, read_config
from lmi_build.decoders.rotary import RotaryTables, rotary_tables, rotate
from lmi_build.quantizers import experts
from lmi_build.quantizers.coded import CodedLinear, multiply
from lmi_build.quantizers.embedding import embed
from lmi_build.quantizers.lanes import Lanes
from lmi_build.quantizers.steps import Absorb, Activations, Room, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lmi_build.catalog.architectures import Architecture

__all__ = [
    "Absorb",
    "Activations",
    "Block",
    "DecoderConfig",
    "Room",
    "Step",
    "embed",
    "read_config",
]

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
    """

    architecture: Architecture
    config: DecoderConfig
    index: int
    weights: dict[str, Tensor]
    coded: dict[str, tuple[CodedLinear, slice]] = field(default_factory=dict)
    leaves: bool = True
    lanes: Lanes = field(default_factory=Lanes)
    kv_observer: Callable[[Tensor, Tensor], None] | None = None
    _tables: RotaryTables | None = field(default=None, init=False)
    _scores: Scores | None = field(default=None, init=False)

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
            self.absorb_in_norm(self.attention_norm),
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
            self.absorb_in_norm(self.mlp_norm),
        )
        inner = room(self.num_inputs(arch.down), slot=0)

        def widen(part: slice) -> Tensor:
            y_SLF = self.widen(arch.widening, self.norm(self.mlp_norm, out.load(part)))
            inner.store(part, y_SLF)
            return y_SLF

        yield self.step((arch.down,), widen, parts, self.absorb_in_up(arch.widening))
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
            self.absorb_in_norm(self.attention_norm),
        )
        if not is_shared:
            yield self.step(
                arch.widening,
                lambda part: self.norm(self.mlp_norm, x.load(part)),
                parts,
                self.absorb_in_norm(self.mlp_norm),
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

        yield self.step((arch.down,), widen, parts, self.absorb_in_up(arch.widening))
        self._add_mlp(out, inner, parts)

    def _output_step(
        self, x: Activations, mixed: Activations, parts: Sequence[slice]
    ) -> Step:
        def mix(part: slice) -> Tensor:
            y_SLI = self._attention(self.norm(self.attention_norm, x.load(part)))
            mixed.store(part, y_SLI)
            return y_SLI

        return self.step(
            (self.architecture.output,), mix, parts, self._absorb_in_value()
        )

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
        expert: int | None = None,
    ) -> Step:
        """A step of this block; what is made may have any leading dimensions."""
        searched = linears if searched is None else searched
        return Step(
            parts=linears,
            searched=searched,
            num_inputs=self.num_inputs((linears or searched)[0]),
            chunks=[partial(_make_rows, make, part) for part in parts],
            absorb=absorb,
            expert=expert,
        )

    def absorb_in_norm(
        self, name: str, *, readers: tuple[str, ...] = ()
    ) -> Absorb | None:
        """What a scale of a norm's result can go into."""
        if not name:
            return None
        offset = 1.0 if self.architecture.norm == "rms-plus-one" else 0.0
        return Absorb(
            kind="norm", name=name, rows_I=None, readers=readers, offset=offset
        )

    def absorb_in_up(self, widening: tuple[str, ...]) -> Absorb | None:
        """What a scale of the down projection's input can go into."""
        arch = self.architecture
        if widening == (arch.fused_gate_up,):
            inner = self.weights[arch.fused_gate_up].shape[0] // 2
            row_I = torch.arange(inner, 2 * inner)
            return Absorb(kind="linear", name=arch.fused_gate_up, rows_I=row_I)
        if len(widening) == 1:
            return None
        return Absorb(kind="linear", name=widening[1], rows_I=None)

    def _absorb_in_value(self) -> Absorb:
        """Row of v behind each input channel of o: its key head's, its place's."""
        arch, config = self.architecture, self.config
        width, shared = config.head_dim, config.num_heads // config.num_kv_heads
        head_N = torch.arange(config.num_heads) // shared
        if not arch.fused_qkv:
            first_N = head_N * width
        elif arch.fused_layout == "grouped":
            first_N = (head_N * (shared + 2) + shared + 1) * width
        else:
            first_N = (config.num_heads + config.num_kv_heads + head_N) * width
        row_NH = first_N[:, None] + torch.arange(width)
        name = arch.fused_qkv or arch.value
        return Absorb(kind="linear", name=name, rows_I=row_NH.flatten())

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

    def _attention(self, normed_SLD: Tensor) -> Tensor:
        """From the attention's input to the output projection's input."""
        query_SNLH, key_SKLH, value_SKLH = self._heads(normed_SLD)
        scores = self._prepare(query_SNLH)
        if self._tables is not None:
            query_SNLH = rotate(query_SNLH, self._tables)
            key_SKLH = rotate(key_SKLH, self._tables)
        if self.kv_observer is not None:
            self.kv_observer(key_SKLH, value_SKLH)
        return attend(query_SNLH, key_SKLH, value_SKLH, scores)

    def _heads(self, x_SLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [S, N, L, H], keys and values [S, K, L, H], not yet rotated."""
        arch, config = self.architecture, self.config
        heads, key_heads = config.num_heads, config.num_kv_heads
        if arch.fused_qkv:
            y = self.linear(arch.fused_qkv, x_SLD)
            if arch.fused_layout == "grouped":
                y = torch.unflatten(y, -1, (key_heads, -1, config.head_dim))
                query = y[..., :-2, :].flatten(2, 3)
                key, value = y[..., -2, :], y[..., -1, :]
            else:
                y = torch.unflatten(y, -1, (-1, config.head_dim))
                query, key = y[..., :heads, :], y[..., heads:-key_heads, :]
                value = y[..., -key_heads:, :]
        else:
            names = (arch.query, arch.key, arch.value)
            query, key, value = self.linears(names, x_SLD)
            query = self._normed_heads(arch.query_norm, query, heads)
            key = self._normed_heads(arch.key_norm, key, key_heads)
            value = torch.unflatten(value, -1, (key_heads, -1))
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _normed_heads(self, name: str, x_SLI: Tensor, heads: int) -> Tensor:
        """Split heads; normed all together, each with one weight or with its own."""
        weight = self.weights.get(name) if name else None
        if weight is None:
            return torch.unflatten(x_SLI, -1, (heads, -1))
        if weight.ndim > 1:
            x_SLNH = torch.unflatten(x_SLI, -1, (heads, -1))
            width, eps = x_SLNH.shape[-1:], self.config.norm_eps
            return functional.layer_norm(x_SLNH, width, eps=eps) * weight
        if weight.shape[0] == x_SLI.shape[-1]:
            return torch.unflatten(self.norm(name, x_SLI), -1, (heads, -1))
        return self.norm(name, torch.unflatten(x_SLI, -1, (heads, -1)))

    def _prepare(self, like_SNLH: Tensor) -> Scores:
        """Tables for the length of the samples, made once."""
        if self._scores is not None:
            return self._scores
        config, length = self.config, like_SNLH.shape[2]
        dtype, device = like_SNLH.dtype, like_SNLH.device
        rope = config.rope_of(self.index)
        if rope is not None:
            self._tables = rotary_tables(
                rope,
                num_tokens=length,
                pairs=self.architecture.rotary == "pairs",
                dtype=dtype,
                device=device,
            )
        bias_NL = None
        if config.alibi:
            bias_NL = alibi_bias(
                config.alibi,
                num_heads=config.num_heads,
                num_tokens=length,
                head_dim=config.head_dim,
                dtype=dtype,
                device=device,
            )
        window = config.window_of(self.index)
        self._scores = Scores(
            scale=config.score_scale_of(self.index),
            softcap=config.score_softcap,
            window=window if window is not None and window < length else None,
            bias_NL=bias_NL,
        )
        return self._scores


def _make_rows(make: Callable[[Part], Tensor], part: Part) -> Tensor:
    """A chunk as [T, I]."""
    return make(part).flatten(0, -2)
