"""Lengths of texts, in tokens of a model; the texts are forgotten at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid, ToolMissing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def token_counter(tokenizer: Path) -> Callable[[Any], int | str]:
    """
    A function from a text to its number of tokens.

    A list of chat messages counts the tokens of their contents; what a chat template
    puts around them is not counted. Special tokens that the tokenizer adds by itself
    are.

    Args:
        tokenizer: `tokenizer.json`, or the folder of a model that has one.

    Raises:
        ToolMissing: `traffic.tokenizers`: the library is not installed.
        SourceInvalid: `traffic.tokenizer`: no such file, or no tokenizer in it.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ToolMissing(
            "counting tokens of texts needs the package `tokenizers`",
            code="traffic.tokenizers",
            hints=("pip install 'lmi-build[gguf]'", "or log token counts"),
        ) from error
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        encode = Tokenizer.from_file(str(file)).encode
    except Exception as error:  # the library raises nothing narrower
        raise SourceInvalid(
            f"`{file}` is no tokenizer: {error}",
            code="traffic.tokenizer",
            hints=("name the `tokenizer.json` of the model, or its folder",),
        ) from error

    def count(value: Any) -> int | str:
        if value is None:
            return "missing"
        if isinstance(value, str):
            return len(encode(_whole(value)).ids)
        if not isinstance(value, list):
            return "not-a-text"
        total = 0
        for message in value:
            content = message.get("content") if isinstance(message, dict) else None
            if content is not None and not isinstance(content, str):
                return "not-a-text"
            if content:
                ids = encode(_whole(content), add_special_tokens=False).ids
                total += len(ids)
        return total

    return count


def _whole(text: str) -> str:
    # Halves of a surrogate pair are JSON but no UTF-8; the library would refuse them.
    return text.encode("utf-8", "replace").decode()
