"""
How long a prefill and a decode step take, from a roofline.

A forward pass computes products, reads weights and keys and values from memory, and,
where layers are split, adds up parts over the link between devices. At best the three
hide behind each other and only the longest counts; at worst they come one after the
other. Each runs at a share of the device's peak rate that lies between two numbers;
docs/concepts/cost.md holds what follows against published measurements.

Legend: L layers, W width of all query heads, T tokens of a prompt, C tokens in the
cache, B requests of a batch, N devices.

Sources: roofline, Williams, Waterman and Patterson, CACM 52(4), 2009; operations of a
decoder, arXiv:2001.08361 section 2.1; two sums over ranks in each layer,
arXiv:1909.08053 section 3; ring all-reduce, 2 (N - 1) / N of the data over each link.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmi_build.values.ranges import Range

# Shares of peak rates that runtimes reach, and what a pass costs beside them: rules of
# thumb, wide enough for 114 of the 122 published measurements of docs/concepts/cost.md;
# the eight others were slower.
COMPUTE_SHARE = Range(low=0.35, high=0.85)
MEMORY_SHARE = Range(low=0.45, high=0.95)
LINK_SHARE = Range(low=0.25, high=0.9)
# Launching kernels, scheduling and sampling of one pass; the delay of one sum over
# ranks.
PASS_SECONDS = Range(low=0.0, high=4e-3)
SUM_SECONDS = Range(low=2e-6, high=4e-5)
_SUMS_PER_LAYER = 2
_HALF_BYTES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """
    What a pass of a model computes and reads, over all ranks.

    Args:
        num_layers: L.
        hidden_size: Width of the residual stream.
        attention_width: W, query heads times their width.
        num_active_params: Weights that one token is multiplied with.
        weight_bytes: Bytes of weights that every pass reads.
        kv_bytes_per_token: Bytes that one token leaves in the cache.
        expert_bytes: Bytes of all experts, beside `weight_bytes`; 0 without experts.
        num_experts: In each layer; 0 without.
        num_experts_per_token: Of them, what one token is sent to.
        window: Tokens that sliding layers see; 0 where no layer slides.
        sliding_share: Share of the layers that slide.
    """

    num_layers: int
    hidden_size: int
    attention_width: int
    num_active_params: int
    weight_bytes: int
    kv_bytes_per_token: float
    expert_bytes: int = 0
    num_experts: int = 0
    num_experts_per_token: int = 0
    window: int = 0
    sliding_share: float = 0.0

    def read_bytes(self, num_tokens: float) -> float:
        """
        Bytes of weights that a pass over so many tokens reads.

        Experts are read where some token is sent to them; tokens are taken to choose
        independently.
        """
        if not self.num_experts:
            return self.weight_bytes
        missed = 1 - self.num_experts_per_token / self.num_experts
        touched = 1.0 - float(missed**num_tokens)
        return self.weight_bytes + self.expert_bytes * touched

    def seen_tokens(self, num_cached: float) -> float:
        """Tokens of the cache that a layer sees on average."""
        if not self.window:
            return num_cached
        slid = min(num_cached, self.window)
        return num_cached * (1 - self.sliding_share) + slid * self.sliding_share


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """
    Where a model runs.

    Args:
        num_ranks: Devices, or cores of them, that a layer is split over.
        flops_per_second: Peak of one rank for the model's products.
        memory_bytes_per_second: Peak of one rank.
        link_bytes_per_second: Between two ranks, one direction; None where it is not
            known, and then sums over ranks cost their latency alone.
    """

    num_ranks: int
    flops_per_second: float
    memory_bytes_per_second: float
    link_bytes_per_second: float | None = None


def prefill_seconds(
    decoder: Decoder, machine: Machine, *, num_tokens: float, batch_size: float = 1
) -> Range:
    """
    How long prompts take until their first tokens.

    Operations: 2 for each active weight and token, and 2 L W T^2 for each prompt, since
    a token sees those before it. Layers that slide are counted as if they did not.

    Args:
        decoder: The model.
        machine: Where it runs.
        num_tokens: T of each prompt.
        batch_size: B prompts in one pass.
    """
    attention = (
        2.0 * decoder.num_layers * decoder.attention_width * num_tokens * num_tokens
    )
    flops = batch_size * (2.0 * decoder.num_active_params * num_tokens + attention)
    tokens = batch_size * num_tokens
    return _pass_seconds(
        decoder,
        machine,
        flops=flops,
        read=decoder.read_bytes(tokens) + tokens * decoder.kv_bytes_per_token,
        tokens=tokens,
    )


def decode_seconds(
    decoder: Decoder, machine: Machine, *, num_cached: float, batch_size: float
) -> Range:
    """
    How long one more token of each request takes.

    Args:
        decoder: The model.
        machine: Where it runs.
        num_cached: C of each request, in the mean.
        batch_size: B requests.
    """
    seen = decoder.seen_tokens(num_cached)
    attention = 4.0 * decoder.num_layers * decoder.attention_width * seen
    flops = batch_size * (2.0 * decoder.num_active_params + attention)
    cache = batch_size * seen * decoder.kv_bytes_per_token
    return _pass_seconds(
        decoder,
        machine,
        flops=flops,
        read=decoder.read_bytes(batch_size) + cache,
        tokens=batch_size,
    )


def _pass_seconds(
    decoder: Decoder, machine: Machine, *, flops: float, read: float, tokens: float
) -> Range:
    """One pass: the longest part at best, all of them in a row at worst."""
    compute = flops / (machine.num_ranks * machine.flops_per_second)
    memory = read / (machine.num_ranks * machine.memory_bytes_per_second)
    data, delay = _sums(decoder, machine, tokens)
    best = max(
        compute / COMPUTE_SHARE.high,
        memory / MEMORY_SHARE.high,
        data / LINK_SHARE.high,
    )
    worst = (
        compute / COMPUTE_SHARE.low + memory / MEMORY_SHARE.low + data / LINK_SHARE.low
    )
    return Range(low=best, high=worst) + PASS_SECONDS + SUM_SECONDS.times(delay)


def _sums(decoder: Decoder, machine: Machine, tokens: float) -> tuple[float, int]:
    """Seconds of all sums over ranks at the link's peak, and how many there are."""
    ranks = machine.num_ranks
    if ranks == 1:
        return 0.0, 0
    count = _SUMS_PER_LAYER * decoder.num_layers
    if machine.link_bytes_per_second is None:
        return 0.0, count
    moved = 2 * (ranks - 1) / ranks * tokens * decoder.hidden_size * _HALF_BYTES
    return count * moved / machine.link_bytes_per_second, count
