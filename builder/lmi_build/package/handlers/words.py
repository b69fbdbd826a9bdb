"""
Tokenizers and chat templates, without transformers.

Becomes part of `model.py` as `generation` does: tokenizers, jinja2 and Python 3.9.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lmi_build.package.handlers.generation import (
    InvalidRequest,
    TextEngine,
    read_json,
    read_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class WordsEngine(TextEngine):
    """
    An engine whose words are those of the model's `tokenizer.json`.

    Args:
        folder: With `tokenizer.json`, and the files of the chat template.

    Raises:
        EngineBroken: `tokenizer.json` is not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        super().__init__()
        self._token_bytes = read_tokens(folder / "tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._template = ChatTemplate(folder)
        # What `encode` puts before every text by itself; mostly nothing.
        first = self.encode("a")[:1]
        self._bos = self._token_bytes.specials.get(first[0], "") if first else ""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """
        The prompt of a conversation, ready for the assistant's turn.

        A beginning that `encode` adds by itself is left out, so that it comes once.

        Raises:
            InvalidRequest: The model has no chat template, or it refuses them.
        """
        return self._template.render(messages).removeprefix(self._bos)


class ChatTemplate:
    """
    The model's chat template, if it has one.

    Args:
        folder: With `tokenizer_config.json` and perhaps `chat_template.jinja`.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        config = read_json(path) if path.is_file() else {}
        single = folder / "chat_template.jinja"
        text = single.read_text("utf-8") if single.is_file() else None
        named = config.get("chat_template") if text is None else text
        if isinstance(named, list):
            named = next(
                (row["template"] for row in named if row.get("name") == "default"), None
            )
        self._text = named
        self._tokens = {}
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = config.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                self._tokens[name] = value

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a conversation."""
        if not self._text:
            raise InvalidRequest("the model has no chat template")
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        try:
            return environment.from_string(self._text).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **self._tokens,
            )
        except TemplateError as error:
            raise InvalidRequest(f"the chat template refuses this: {error}") from error
