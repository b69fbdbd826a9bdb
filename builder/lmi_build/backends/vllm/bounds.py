"""A recipe's bounds in the numbers that vLLM schedules by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.vllm.kernels import version_key
from lmi_build.catalog.runtimes import runtimes
from lmi_build.errors import Problem
from lmi_build.sizing.memory import num_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.vllm.target import Target
    from lmi_build.values.bounds import Bounds

RUNTIME = "vllm"
# From here on prompts are cut into parts unless that is turned off.
_CHUNKS_SINCE = (0, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedBounds:
    """
    What every place of an artifact says.

    Args:
        max_seq_len: Tokens of a request with its answer, `max_model_len`.
        max_batch_size: Requests scheduled together, `max_num_seqs`.
        max_num_tokens: Packed tokens of one forward, `max_num_batched_tokens`.
    """

    max_seq_len: int
    max_batch_size: int
    max_num_tokens: int


def lower_bounds(bounds: Bounds, target: Target) -> ServedBounds:
    """
    The numbers of a recipe that `bound_problems` found nothing wrong with.

    Packed tokens that the recipe leaves open are those that `size` counts, and never
    fewer than one whole request and a token of each request.
    """
    open_tokens = max(
        num_tokens(bounds, runtimes()[RUNTIME]),
        bounds.max_seq_len,
        bounds.max_batch_size,
        target.handler.fixed_num_seqs,
    )
    return ServedBounds(
        max_seq_len=bounds.max_seq_len,
        max_batch_size=bounds.max_batch_size,
        max_num_tokens=bounds.max_num_tokens or open_tokens,
    )


def bound_problems(
    bounds: Bounds, target: Target, *, chunked: bool | None
) -> Iterator[Problem]:
    """
    Why vLLM would refuse, or change, the bounds of a recipe.

    Args:
        bounds: The recipe's.
        target: What serves.
        chunked: `enable_chunked_prefill`; None where vLLM decides.

    Source: vLLM `SchedulerConfig._verify_args`.
    """
    if bounds.max_beam_width != 1:
        yield _problem(
            f"vLLM has no bound for beams, `max_beam_width` is {bounds.max_beam_width}",
            "bounds.max_beam_width",
            "write `max_beam_width: 1`",
        )
    if bounds.max_output_len == 0:
        yield _problem(
            "a folder for vLLM generates text, `max_output_len` is 0",
            "bounds.max_output_len",
            "write `max_output_len: 1` at least",
        )
    tokens, release = bounds.max_num_tokens, target.release
    if tokens is None or not target.handler.reads("max_num_tokens"):
        return
    seqs = target.handler.fixed_num_seqs or bounds.max_batch_size
    if tokens < seqs:
        whose = "it always schedules" if target.handler.fixed_num_seqs else "are asked"
        yield _problem(
            f"vLLM {target.vllm} refuses fewer packed tokens ({tokens}) than requests"
            f" ({seqs} {whose})",
            "bounds.max_num_tokens",
            f"raise it to {seqs}, or remove the line",
        )
    default = version_key(target.vllm) >= _CHUNKS_SINCE
    cut = default if chunked is None else chunked
    if tokens < bounds.max_seq_len and not cut:
        yield _problem(
            f"vLLM {target.vllm} of `{release.name}` computes a prompt in one piece and"
            f" refuses {tokens} packed tokens for requests of {bounds.max_seq_len}",
            "bounds.max_num_tokens",
            f"raise it to {bounds.max_seq_len}, or write"
            " `serve.options.enable_chunked_prefill: true`",
        )


def _problem(message: str, path: str, hint: str) -> Problem:
    return Problem(code="vllm.bounds", message=message, path=path, hint=hint)
