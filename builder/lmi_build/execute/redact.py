"""Keeping secrets out of everything that is written down."""

from __future__ import annotations

from dataclasses import dataclass

# Shorter values would black out ordinary words.
_SHORTEST = 6


@dataclass(frozen=True, slots=True)
class Redactor:
    """
    Replaces known secret values.

    Args:
        values: The secrets, longest first.
    """

    values: tuple[str, ...]

    def text(self, text: str) -> str:
        """The text without secrets."""
        for value in self.values:
            if len(value) >= _SHORTEST:
                text = text.replace(value, "[redacted]")
        return text
