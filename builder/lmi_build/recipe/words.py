"""How recipe text is quoted in messages, and how paths into it are written."""

from __future__ import annotations

import re

_MAX_SHOWN = 60
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")


def show(text: str) -> str:
    """Make text fit for one line of a message: seen, printable, not too long."""
    if not text:
        return '""'
    cut = text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
    return printable(cut)


def printable(text: str) -> str:
    """Escape what a terminal would act on instead of showing."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def child_path(path: str, name: str) -> str:
    """Append a key to a dotted path; a key with a dot in it is quoted."""
    shown = show(name)
    step = shown if _PLAIN_KEY.match(shown) else '"' + shown.replace('"', '\\"') + '"'
    return f"{path}.{step}" if path else step


def nearest(word: str, options: list[str]) -> str | None:
    """The nearest option; a very long word is near to none."""
    from lmi_build.text import did_you_mean

    return did_you_mean(word, options) if len(word) <= _MAX_SHOWN else None
