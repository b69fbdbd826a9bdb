"""
Make a log of requests for the examples: chats, and a fifth of long documents.

Lengths come from a formula instead of dice, so that the same file is written anywhere.

Usage: scripts/make_log.py FILE [REQUESTS]
"""

from __future__ import annotations

import sys
from pathlib import Path

_START = 1_767_225_600
# Parts of the golden and the plastic number: their multiples are spread evenly.
_STEPS = (0.6180339887, 0.7548776662)
_CHAT, _DOCUMENT, _ANSWER = 420, 2200, 150
_LONGEST = (8192, 2048)


def main() -> int:
    """Write the log that the command line names; returns the exit status."""
    path, *count = sys.argv[1:]
    Path(path).write_text(log_text(int(count[0]) if count else 20_000), "utf-8")
    return 0


def log_text(count: int) -> str:
    """
    A log as CSV: time of arrival, prompt and answer in tokens.

    Args:
        count: Requests, two in a second.
    """
    lines = ["timestamp,input_tokens,output_tokens"]
    for number in range(count):
        prompt, answer = ((number * step) % 1 for step in _STEPS)
        middle = _CHAT if number % 5 else _DOCUMENT
        input_len = min(_LONGEST[0], round(middle * _tail(prompt, 0.31)))
        output_len = min(_LONGEST[1], round(_ANSWER * _tail(answer, 0.33)))
        lines.append(f"{_START + number // 2},{input_len},{output_len}")
    return "\n".join(lines) + "\n"


def _tail(share: float, width: float) -> float:
    """A long-tailed factor around 1: a quantile of the log-logistic distribution."""
    inside = min(0.9995, max(0.0005, share))
    return float((inside / (1 - inside)) ** width)


if __name__ == "__main__":
    sys.exit(main())
