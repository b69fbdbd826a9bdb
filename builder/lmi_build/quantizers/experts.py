"""
The feed-forward part of a block whose router sends every token to a few experts.

Tokens are sorted by expert once. An expert then has two steps of its own, with the
tokens that were sent to it, gathered from the residual stream a chunk at a time; what
it makes of them is added up beside the stream. The choice of experts is the float
model's, made with the inputs that the blocks before really give.

Shape suffixes: S samples of one chunk, L tokens of a sample, T tokens of all samples,
t tokens of one expert or some of them, D residual width, F an expert's width, E
experts, k experts per token.

Source: transformers 5.23.0, models/mixtral/modeling_mixtral.py and
models/qwen2_moe/modeling_qwen2_moe.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmi_build.quantizers.absorbing import absorb_in_norm, absorb_in_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lmi_build.quantizers.decoder import Block
    from lmi_build.quantizers.steps import Absorb, Activations, Room, Step


@dataclass(frozen=True, kw_only=True, slots=True)
class _Routing:
    """
    Which expert sees which tokens.

    Args:
        token_Tk: Token numbers, those of expert 0 first, rising within an expert.
        weight_Tk: What an expert's result for that token is multiplied by.
        ends: Where each expert's tokens end.
    """

    token_Tk: Tensor
    weight_Tk: Tensor
    ends: tuple[int, ...]

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """Tokens and weights of one expert."""
        here = slice(self.ends[expert - 1] if expert else 0, self.ends[expert])
        return self.token_Tk[here], self.weight_Tk[here]


class _Rows:
    """
    Single tokens of a stream that is kept in chunks of samples.

    Args:
        stream: [N, L, D].
        parts: Its chunks.
    """

    def __init__(self, stream: Activations, parts: Sequence[slice]) -> None:
        samples, self.length, _ = stream.shape
        self.stream = stream
        self.parts = [slice(p.start, min(p.stop, samples)) for p in parts]
        self.sizes = [(p.stop - p.start) * self.length for p in self.parts]

    def cut(self, token_t: Tensor) -> Iterator[tuple[slice, Tensor, slice]]:
        """The chunks that hold some tokens: chunk, places in it, which tokens."""
        first = [part.start * self.length for part in self.parts]
        bound = torch.tensor([*first[1:]], device=token_t.device, dtype=token_t.dtype)
        cuts = [0, *torch.searchsorted(token_t, bound).tolist(), len(token_t)]
        for number, part in enumerate(self.parts):
            here = slice(cuts[number], cuts[number + 1])
            if here.stop > here.start:
                yield part, token_t[here] - first[number], here

    def gather(self, token_t: Tensor) -> Tensor:
        """Some tokens, [t, D]."""
        rows = [
            self.stream.load(part).flatten(0, 1).index_select(0, place_t)
            for part, place_t, _ in self.cut(token_t)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def add(self, token_t: Tensor, y_tD: Tensor) -> None:
        """Add to some tokens."""
        for part, place_t, here in self.cut(token_t):
            x_SLD = self.stream.load(part)
            x_tD = x_SLD.flatten(0, 1).index_add_(0, place_t, y_tD[here])
            self.stream.store(part, x_tD.view(x_SLD.shape))

    def chunks(self, count: int) -> Iterator[tuple[slice, slice]]:
        """Cut `count` tokens into runs that fit one chunk each: chunk and tokens."""
        start = 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            if start >= count:
                return
            yield part, slice(start, min(start + size, count))
            start += size


def steps(
    block: Block,
    enter: Callable[[slice], Tensor],
    out: Activations,
    *,
    parts: Sequence[slice],
    room: Room,
    smoothing: bool,
) -> Iterator[Step]:
    """
    Hand out the steps of a sparse feed-forward part.

    Args:
        block: The block.
        enter: Makes the residual stream of a chunk, and stores it in `out`.
        out: The stream; what the experts make is added to it at the end.
        parts: Chunks of samples.
        room: Scratch.
        smoothing: Begin with a step without linears, in which one scale for what all
            experts read can be searched.
    """
    routing = _route(block, enter, parts)
    arch = block.architecture
    prefix = next(
        name for name in arch.experts if arch.expert(name, 0)[-1] in block.weights
    )
    each = [arch.expert(prefix, number) for number in range(block.config.num_experts)]
    shared = (arch.shared_gate, arch.shared_up) if arch.shared_router else ()
    readers = (block.router, *((arch.shared_router,) if shared else ()))
    absorb = absorb_in_norm(arch, block.mlp_norm, readers=readers)
    if smoothing:
        yield block.step(
            (),
            lambda part: block.norm(block.mlp_norm, out.load(part)),
            parts,
            absorb,
            searched=(*shared, *(name for names in each for name in names[:2])),
        )
    total = room(out.shape[2], slot=1)
    if shared:
        yield from _shared_steps(block, absorb, out, total, parts=parts, room=room)
    else:
        for part in parts:
            total.store(part, torch.zeros_like(out.load(part)))
    for number, names in enumerate(each):
        yield from _expert_steps(
            block,
            names,
            number,
            absorb=absorb,
            routing=routing.of(number),
            stream=_Rows(out, parts),
            total=_Rows(total, parts),
            room=room,
        )
    for part in parts:
        y_SLD = block.norm(arch.mlp_post_norm, total.load(part))
        out.store(part, out.load(part) + y_SLD * block.residual_scale)


def _route(
    block: Block, enter: Callable[[slice], Tensor], parts: Sequence[slice]
) -> _Routing:
    """Let the router choose for all tokens, and sort them by expert."""
    config = block.config
    experts: list[Tensor] = []
    weights: list[Tensor] = []
    for part in parts:
        x_TD = block.norm(block.mlp_norm, enter(part)).flatten(0, 1)
        logit_TE = block.linear(block.router, x_TD)
        wide = torch.promote_types(logit_TE.dtype, torch.float32)
        weight_Tk, expert_Tk = torch.topk(
            logit_TE.softmax(-1, dtype=wide), config.num_experts_per_token
        )
        if config.norm_expert_weights:
            weight_Tk = weight_Tk / weight_Tk.sum(-1, keepdim=True)
        experts.append(expert_Tk.flatten())
        weights.append(weight_Tk.flatten())
    expert = torch.cat(experts)
    order = torch.argsort(expert, stable=True)
    count_E = torch.bincount(expert, minlength=config.num_experts)
    return _Routing(
        token_Tk=order // config.num_experts_per_token,
        weight_Tk=torch.cat(weights)[order],
        ends=tuple(count_E.cumsum(0).tolist()),
    )


def _shared_steps(
    block: Block,
    absorb: Absorb | None,
    out: Activations,
    total: Activations,
    *,
    parts: Sequence[slice],
    room: Room,
) -> Iterator[Step]:
    """The expert that sees every token; what it makes begins the sum."""
    arch = block.architecture
    widening = (arch.shared_gate, arch.shared_up)
    yield block.step(
        widening,
        lambda part: block.norm(block.mlp_norm, out.load(part)),
        parts,
        absorb,
        searched=(),
    )
    inner = room(block.num_inputs(arch.shared_down), slot=0)

    def widen(part: slice) -> Tensor:
        y_SLF = block.widen(widening, block.norm(block.mlp_norm, out.load(part)))
        inner.store(part, y_SLF)
        return y_SLF

    absorb_up = absorb_in_up(arch, widening, block.weights)
    yield block.step((arch.shared_down,), widen, parts, absorb_up)

    def add(part: slice) -> None:
        x_SLD = block.norm(block.mlp_norm, out.load(part))
        share_SL1 = block.linear(arch.shared_router, x_SLD).sigmoid()
        y_SLD = block.linear(arch.shared_down, inner.load(part))
        total.store(part, share_SL1 * y_SLD)

    block.lanes.map(add, parts)


def _expert_steps(
    block: Block,
    names: tuple[str, str, str],
    number: int,
    *,
    absorb: Absorb | None,
    routing: tuple[Tensor, Tensor],
    stream: _Rows,
    total: _Rows,
    room: Room,
) -> Iterator[Step]:
    token_t, weight_t = routing
    down = names[2]
    pieces = list(stream.chunks(len(token_t)))

    def gather(piece: tuple[slice, slice]) -> Tensor:
        return block.norm(block.mlp_norm, stream.gather(token_t[piece[1]]))

    yield block.step(
        names[:2],
        gather,
        pieces,
        absorb,
        searched=(),
        expert=number,
        token_t=token_t,
    )
    width = block.num_inputs(down)
    inner = room(width, slot=0)

    def widen(piece: tuple[slice, slice]) -> Tensor:
        part = piece[0]
        y_tF = block.widen(names[:2], gather(piece))
        # The end of an expert's last chunk stays as it is and is never read.
        samples = part.stop - part.start
        y_TF = y_tF.new_zeros(samples * stream.length, width)
        y_TF[: len(y_tF)] = y_tF
        inner.store(part, y_TF.view(samples, stream.length, width))
        return y_tF

    yield block.step(
        (down,),
        widen,
        pieces,
        absorb_in_up(block.architecture, names[:2], block.weights),
        expert=number,
        token_t=token_t,
    )
    for part, here in pieces:
        x_tF = inner.load(part).flatten(0, 1)[: here.stop - here.start]
        y_tD = block.linear(down, x_tF) * weight_t[here, None]
        total.add(token_t[here], y_tD.to(x_tF.dtype))
