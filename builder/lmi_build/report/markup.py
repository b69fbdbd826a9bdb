"""Text that is safe inside a page, whoever wrote it."""

from __future__ import annotations

import html
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Controls, text direction marks and halves of a pair: what cannot be shown is shown
# as a replacement mark, so that a name can neither hide nor turn what stands after it.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_KEPT = frozenset({"\n", "\t"})
# The joiner that emoji and several scripts are made with.
_JOINERS = frozenset({"\u200c", "\u200d"})


def text(value: str) -> str:
    """Escape for element content and for attributes in double quotes."""
    shown = "".join(
        "\ufffd"
        if unicodedata.category(char) in _UNSEEN and char not in _KEPT | _JOINERS
        else char
        for char in value
    )
    return html.escape(shown, quote=True)


def code(value: str) -> str:
    """Write a name of the model or the recipe; long ones may break anywhere."""
    return f"<code>{text(value)}</code>"


def number(value: float) -> str:
    """Three significant digits, without an exponent where it can be read."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:  # noqa: PLR2004 - what people read at a glance
        digits = f"{value:#.3g}"
        return digits.rstrip(".")
    return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e")


def prose(value: str) -> str:
    """A sentence whose literals stand in backticks."""
    plain, *rest = value.split("`")
    made = text(plain)
    for index, part in enumerate(rest):
        made += text(part) if index % 2 else code(part)
    return made


def figures(cells: Iterable[tuple[str, str, str]]) -> str:
    """The numbers that most readers came for: name, value and what it means."""
    made = "".join(
        f'<div><dt>{text(name)}</dt><dd class="value">{text(value)}</dd>'
        f'<dd class="detail">{text(detail)}</dd></div>'
        for name, value, detail in cells
    )
    return f'<dl class="figures">{made}</dl>'
