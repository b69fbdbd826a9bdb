"""The lengths and sizes that an artifact promises to serve."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """
    What one request and one batch may ask for.

    Args:
        max_input_len: Longest prompt of one request, in tokens.
        max_output_len: Most new tokens of one request; 0 for an encoder.
        max_batch_size: Requests scheduled together.
        max_num_tokens: Packed input tokens of one forward pass; None lets the
            backend derive it.
        max_beam_width: Beams of one request.
    """

    max_input_len: int
    max_output_len: int
    max_batch_size: int = 1
    max_num_tokens: int | None = None
    max_beam_width: int = 1

    @property
    def max_seq_len(self) -> int:
        """Prompt and output of one request together, in tokens; derived, never set."""
        return self.max_input_len + self.max_output_len
