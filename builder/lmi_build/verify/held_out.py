"""Windows of text that calibration never sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.errors import VerifyFailed
from lmi_build.quantizers.calibration import held_out_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def held_out_windows(
    tokenizer: Tokenizer, *, num_samples: int, max_seq_len: int
) -> list[list[int]]:
    """
    Cut `num_samples` windows of `max_seq_len` tokens, spread evenly over the text.

    Raises:
        VerifyFailed: `verify.too-few-tokens` when the windows would overlap.
    """
    ids: list[int] = tokenizer.encode(held_out_text(), add_special_tokens=False).ids
    needed = num_samples * max_seq_len
    if len(ids) < needed:
        raise VerifyFailed(
            f"{num_samples} windows of {max_seq_len} tokens need {needed},"
            f" the held-out text has {len(ids)}",
            code="verify.too-few-tokens",
            hints=(f"set `verify.num_samples` to {max(1, len(ids) // max_seq_len)}",),
        )
    # Spread evenly, so that a few windows still speak of the whole text.
    stride = (len(ids) - max_seq_len) // max(1, num_samples - 1)
    starts = [index * stride for index in range(num_samples)]
    return [ids[start : start + max_seq_len] for start in starts]


def num_held_out_windows(tokenizer: Tokenizer, *, max_seq_len: int) -> int:
    """How many windows of `max_seq_len` tokens the held-out text has."""
    ids = tokenizer.encode(held_out_text(), add_special_tokens=False).ids
    return len(ids) // max_seq_len
