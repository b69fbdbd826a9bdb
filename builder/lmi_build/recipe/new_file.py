"""A recipe written to a place where no file is yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.errors import UsageInvalid

if TYPE_CHECKING:
    from pathlib import Path


def write_new(file: Path, text: str, *, rename: str) -> None:
    """
    Write a text; a file that exists is never changed.

    Args:
        file: Where.
        text: What.
        rename: The words that would name another place, for the hint.

    Raises:
        UsageInvalid: `init.exists` or `init.unwritable`.
    """
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageInvalid(
            f"{file} exists already; it is left alone",
            code="init.exists",
            hints=(f"give another name: `{rename}`",),
        ) from None
    except OSError as error:
        raise UsageInvalid(
            f"{file} cannot be written: {error.strerror}",
            code="init.unwritable",
            hints=("give a name in a folder that exists",),
        ) from error
