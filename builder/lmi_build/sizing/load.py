"""Packed tokens and a second engine, from a log and the chosen lengths."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING

from lmi_build.values.bounds import Bounds

if TYPE_CHECKING:
    from lmi_build.sizing.lengths import JointLengths
    from lmi_build.sizing.traffic import Choice, Measures

# Kernels work on tiles of this many packed tokens.
TOKEN_TILE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """
    Two engines in place of one; what one engine accepts, these accept.

    Args:
        at: Prompts of at most so many tokens go to the short engine.
        short_output_len: Its `max_output_len`; its `max_input_len` is `at`.
        long_output_len: `max_output_len` of the other one.
        short_share: Share of the accepted requests that the short engine serves.
        saved_share: Share of the reserved capacity that is saved, per request.
    """

    at: int
    short_output_len: int
    long_output_len: int
    short_share: float
    saved_share: float


def best_split(joint: JointLengths, choice: Choice) -> Split | None:
    """
    The two engines that reserve the least capacity per request.

    Only the length of the prompt is known when a request arrives, so it decides. Every
    split point is tried; each engine's bounds are the longest accepted lengths of its
    requests, so what one engine with the chosen bounds accepts, the two accept.

    Returns:
        The split that saves most, the least one of equals; None when none saves.
    """
    rows: list[tuple[int, int, int]] = []
    for input_len, lengths, counts in joint.rows():
        if input_len > choice.max_input_len:
            break
        inside = bisect_right(lengths, choice.max_output_len)
        if inside:
            count = inside if counts is None else sum(counts[:inside])
            rows.append((input_len, lengths[inside - 1], count))
    accepted = sum(count for _, _, count in rows)
    after = list(accumulate((row[1] for row in reversed(rows)), max))[::-1]
    whole = accepted * choice.capacity
    best: Split | None = None
    least = whole
    seen = longest = 0
    for index, (input_len, output_len, count) in enumerate(rows[:-1]):
        seen += count
        longest = max(longest, output_len)
        if input_len == 0 and rows[index + 1][0] == 1:
            continue  # a bound is at least 1, which takes both
        long_capacity = choice.max_input_len + after[index + 1]
        at = max(1, input_len)
        reserved = seen * (at + longest) + (accepted - seen) * long_capacity
        if reserved < least:
            least = reserved
            best = Split(
                at=at,
                short_output_len=longest,
                long_output_len=after[index + 1],
                short_share=seen / accepted,
                saved_share=float(1 - Fraction(reserved, whole)),
            )
    return best


def num_tokens(choice: Choice, measures: Measures, max_batch_size: int) -> int:
    """
    Packed tokens that one forward pass should hold.

    Enough for the longest prompt beside one token of every other request, and for the
    mean load: in steady state a request that generates for `output` steps brings
    `input` prompt tokens, so a step holds on average `batch * (1 + input / output)`.
    Rounded up to a tile; never more than a batch of the longest prompts.
    """
    single = choice.max_input_len + max_batch_size - 1
    steps = max(1.0, measures.output.mean)
    steady = math.ceil(max_batch_size * (1.0 + measures.input.mean / steps))
    tiled = -(-max(single, steady) // TOKEN_TILE) * TOKEN_TILE
    return max(min(tiled, max_batch_size * choice.max_input_len), single)


def bounds_of(
    choice: Choice, measures: Measures, max_batch_size: int | None
) -> Bounds | None:
    """The chosen bounds; None while the batch is not known."""
    if max_batch_size is None:
        return None
    return Bounds(
        max_input_len=choice.max_input_len,
        max_output_len=choice.max_output_len,
        max_batch_size=max_batch_size,
        max_num_tokens=num_tokens(choice, measures, max_batch_size),
    )
