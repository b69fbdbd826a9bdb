"""Words for messages: near misses and lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def did_you_mean(word: str, options: Iterable[str]) -> str | None:
    """
    The option nearest to a misspelt word, or None when nothing is near.

    `difflib` is imported here because a correct recipe never needs it.
    """
    import difflib

    lowered = {option.lower(): option for option in options}
    match = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[match[0]] if match else None


def join_words(words: Sequence[str], *, last: str = "or") -> str:
    """Join literals for a sentence: `` `a`, `b` or `c` ``."""
    quoted = [f"`{word}`" for word in words]
    if len(quoted) <= 1:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"
