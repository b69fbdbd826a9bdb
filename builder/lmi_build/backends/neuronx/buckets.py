"""
Lengths that Transformers NeuronX compiles graphs for.

A graph has fixed shapes. Generation has one per length of the key-value cache (token
buckets), a prompt one per length it is padded to (context buckets). What is longer than
the largest context bucket is finished token by token, which is slow and said nowhere.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.digest import JSONValue

# The smallest token bucket, and what sharding over the sequence adds to the largest:
# `token_sizes` in bucket.py and `KV_SHARD_PAD` in constants.py, 0.9 to 0.13.
SMALLEST_BUCKET = 128
SEQUENCE_SHARD_PAD = 128
# Second bucket of LMI's own list: `INITIAL_BUCKET_SIZE` in djl-serving's
# neuron_utils/utils.py, 0.30 on.
_LMI_SECOND_BUCKET = 1024


def token_buckets(n_positions: int | Sequence[int]) -> tuple[int, ...]:
    """
    Lengths of the key-value cache that generation has a graph for.

    Args:
        n_positions: A list as it is, or a number that buckets double up to.

    Returns:
        Rising lengths, in tokens: `token_buckets(300)` is `(128, 256, 300)`.

    Source: `token_sizes` in transformers_neuronx/bucket.py, 0.9 to 0.13.
    """
    if not isinstance(n_positions, int):
        return tuple(sorted(n_positions))
    found, length = [], SMALLEST_BUCKET
    while length < n_positions:
        found.append(length)
        length *= 2
    return (*found, n_positions)


def context_buckets(
    estimate: int | Sequence[int] | None, tokens: Sequence[int]
) -> tuple[int, ...]:
    """
    Lengths that a prompt is padded to.

    Args:
        estimate: `context_length_estimate`: a list as it is, one length, 0 for no graph
            at all, or None for half of each token bucket.
        tokens: The token buckets.

    Returns:
        Lengths in tokens; empty where every prompt is computed token by token.

    Source: `context_sizes` in transformers_neuronx/bucket.py, 0.9 to 0.13.
    """
    if estimate is None:
        return tuple(length // 2 for length in tokens)
    if isinstance(estimate, int):
        return (estimate,) if estimate > 0 else ()
    return tuple(sorted(estimate))


def padded_positions(
    n_positions: int | Sequence[int], *, shard_over_sequence: bool
) -> int | tuple[int, ...]:
    """
    `n_positions` after the model class had its way.

    Args:
        n_positions: As it is passed.
        shard_over_sequence: The cache is split along the sequence, which needs room.

    Source: `LlamaForSampling.__init__`, 0.12 and 0.13; it pads even where it then finds
    that heads are not grouped and does not shard.
    """
    if isinstance(n_positions, int):
        return n_positions + (SEQUENCE_SHARD_PAD if shard_over_sequence else 0)
    rising = sorted(n_positions)
    if shard_over_sequence:
        rising[-1] += SEQUENCE_SHARD_PAD
    return tuple(rising)


def bucket_of(buckets: Sequence[int], length: int) -> int | None:
    """
    The bucket that a length falls into: the smallest that holds it, else the largest.

    Args:
        buckets: Rising lengths.
        length: In tokens.

    Source: `find` in transformers_neuronx/bucket.py, 0.9 to 0.13.
    """
    if not buckets:
        return None
    return buckets[bisect_left(buckets, length, hi=len(buckets) - 1)]


def serial_tokens(buckets: Sequence[int], length: int) -> int:
    """
    Tokens of a prompt that are computed one by one.

    Args:
        buckets: Context buckets.
        length: Of the prompt, in tokens.

    Source: `context` in transformers_neuronx/base.py, 0.9 to 0.13.
    """
    return max(0, length - (bucket_of(buckets, length) or 0))


def serial_finding(buckets: Sequence[int], max_input_len: int) -> str | None:
    """
    What to tell about prompts that no context bucket holds, or None.

    Args:
        buckets: Context buckets.
        max_input_len: The longest prompt that is promised.
    """
    rest = serial_tokens(buckets, max_input_len)
    if not rest:
        return None
    if not buckets:
        return (
            f"there is no graph for prompts: all {max_input_len} tokens of the longest"
            " are computed one by one"
        )
    return (
        f"the largest context bucket is {buckets[-1]}: of a prompt of {max_input_len}"
        f" tokens the last {rest} are computed one by one"
    )


def chosen_context_buckets(max_input_len: int) -> tuple[int, ...]:
    """
    Context buckets that serve every promised prompt with little padding.

    Args:
        max_input_len: The longest prompt, in tokens.

    Returns:
        Powers of two from 128 below the longest prompt, then that length itself: no
        prompt over 128 tokens is padded to more than twice its length, none is finished
        token by token.
    """
    return token_buckets(max_input_len)


def lmi_context_buckets(n_positions: int) -> tuple[int, ...]:
    """
    What LMI takes for context buckets when a model batches continuously and says none.

    Args:
        n_positions: Prompt and output together.

    Source: `build_context_length_estimates` in djl-serving's neuron_utils/utils.py,
    0.30 to 0.34; before it was one bucket of `n_positions`.
    """
    if n_positions <= SMALLEST_BUCKET:
        return (n_positions,)
    found, length = [SMALLEST_BUCKET], _LMI_SECOND_BUCKET
    while length < n_positions:
        found.append(length)
        length *= 2
    return (*found, n_positions)


def sequence_parallel_misfits(
    buckets: Sequence[int], *, threshold: int, tensor_parallel_size: int
) -> tuple[int, ...]:
    """
    Context buckets whose rows cannot be split for sequence-parallel norms.

    Args:
        buckets: Context buckets.
        threshold: `sequence_parallel_norm_threshold`; shorter ones are not split.
        tensor_parallel_size: Cores that share the rows.

    Source: `LlamaForSampling.__init__`, 0.12 and 0.13, which raises ValueError.
    """
    return tuple(
        length
        for length in buckets
        if length > threshold and length % tensor_parallel_size
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Graphs:
    """
    Graphs of one model, each compiled into one NEFF.

    Args:
        token: One per token bucket and batch size.
        context: One per context bucket and batch size.
        head: Norm and vocabulary apart, where layers are not unrolled into one graph.
        embedding: The embedding apart, for the same reason.
        broadcast: Copies of the cache from one prompt to the whole batch.
    """

    token: int
    context: int
    head: int = 0
    embedding: int = 0
    broadcast: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, item.name) for item in fields(self))

    def to_json(self) -> dict[str, JSONValue]:
        """Each kind by name, and the total."""
        found: dict[str, JSONValue] = {
            item.name: getattr(self, item.name) for item in fields(self)
        }
        return {**found, "total": self.total}


def count_graphs(
    tokens: Sequence[int],
    contexts: Sequence[int],
    *,
    batch_sizes: Sequence[int],
    context_batch_sizes: Sequence[int],
    context_unrolled: bool = True,
    on_device_embedding: bool = False,
    broadcasts: bool = False,
) -> Graphs:
    """
    How many graphs a model has.

    Args:
        tokens: Token buckets.
        contexts: Context buckets.
        batch_sizes: Of generation.
        context_batch_sizes: Of prompts: `[1]` under continuous batching.
        context_unrolled: All layers of a prompt are one graph; else one layer is, and
            norm, vocabulary and embedding are graphs of their own.
        on_device_embedding: The embedding is computed on the cores.
        broadcasts: Prompts are computed one by one and copied over the batch.

    Source: `get_all_kernels` in decoder.py and gpt2/model.py, 0.10 to 0.13; generation
    is always unrolled where LMI loads a model.
    """
    prompts = len(contexts) * len(context_batch_sizes)
    apart = 0 if context_unrolled else prompts
    return Graphs(
        token=len(tokens) * len(batch_sizes),
        context=prompts,
        head=apart,
        embedding=apart if on_device_embedding else 0,
        broadcast=len(contexts) if broadcasts else 0,
    )
