"""
What sentence-transformers does with an encoder's hidden states, read from its files.

Source: sentence-transformers 2.2 to 5.1, `models/{Pooling,Transformer,Normalize}.py`
and `SentenceTransformer.tokenize`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid, Unsupported
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
# In the order in which several of them are joined.
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len")
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
_ORDER = (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """
    How a text becomes one vector.

    Args:
        pooling: Of `POOLINGS`; several are joined in that order.
        normalize: The vector gets length 1.
        strip: White space at both ends of a text is removed first.
        lower: A text is lowered first, whatever its tokenizer does.
        max_seq_length: Tokens that the model was trained with; None where no file
            says it.
    """

    pooling: tuple[str, ...]
    normalize: bool
    strip: bool = False
    lower: bool = False
    max_seq_length: int | None = None


def read_sentence(folder: Path) -> Sentence | None:
    """
    The files of a model's folder; None where it is no sentence encoder.

    Args:
        folder: What the fetch stage made.

    Raises:
        SourceInvalid: `neuronx.sentence-files`: they contradict themselves.
        Unsupported: `neuronx.sentence-module`: they ask for more than pooling and
            normalisation.
    """
    if not (folder / MODULES).is_file():
        return None
    rows = json.loads((folder / MODULES).read_bytes())
    paths = {_kind(row): str(row.get("path", "")) for row in rows}
    if tuple(paths) not in _ORDER or len(paths) != len(rows) or paths["Transformer"]:
        kinds = ", ".join(_kind(row) for row in rows)
        raise Unsupported(
            f"the sentence encoder has the modules {kinds}; a graph is made of a"
            " transformer, pooling and normalisation alone",
            code="neuronx.sentence-module",
            hints=("take a model without further modules, or export it yourself",),
        )
    _refuse_prompt(folder)
    settings = _settings(folder)
    length = settings.get("max_seq_length")
    return Sentence(
        pooling=_pooling(folder, paths["Pooling"]),
        normalize="Normalize" in paths,
        strip=True,
        lower=bool(settings.get("do_lower_case", False)),
        max_seq_length=length if isinstance(length, int) else None,
    )


def _kind(row: Mapping[str, Any]) -> str:
    return str(row.get("type", "")).rpartition(".")[2]


def _settings(folder: Path) -> Mapping[str, Any]:
    """Of the transformer; the file is named after the model, mostly `bert`."""
    found = sorted(folder.glob("sentence_*_config.json"))
    return _read(found[0]) if found else {}


def _refuse_prompt(folder: Path) -> None:
    path = folder / PROMPTS
    name = _read(path).get("default_prompt_name") if path.is_file() else None
    if name is not None:
        raise Unsupported(
            f"the sentence encoder puts its prompt `{name}` before every text by"
            " itself, which the handler does not do",
            code="neuronx.sentence-module",
            hints=(
                (
                    "set `default_prompt_name` to null in a copy of"
                    f" `{PROMPTS}` and send the prompt with each text"
                ),
            ),
        )


def _pooling(folder: Path, path: str) -> tuple[str, ...]:
    document = _read(folder / path / "config.json")
    named = document.get("pooling_mode")
    if named is not None:
        wanted = {named} if isinstance(named, str) else set(named)
    else:
        flags = {k for k, v in document.items() if k.startswith("pooling_mode_") and v}
        wanted = {_FLAGS.get(flag, flag) for flag in flags}
    if unknown := sorted(wanted - set(POOLINGS)):
        raise Unsupported(
            f"`{path}/config.json` asks for the pooling {join_words(unknown)}",
            code="neuronx.sentence-module",
            hints=(f"take a model that pools by {join_words(POOLINGS)}",),
        )
    if not wanted:
        raise SourceInvalid(
            f"`{path}/config.json` names no pooling",
            code="neuronx.sentence-files",
            hints=("fetch the file again from the model's own repository",),
        )
    return tuple(name for name in POOLINGS if name in wanted)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            f"`{path.name}` of the sentence encoder cannot be read: {error}",
            code="neuronx.sentence-files",
            hints=("fetch the file again from the model's own repository",),
        ) from error
    if not isinstance(document, dict):
        raise SourceInvalid(
            f"`{path.name}` of the sentence encoder is not a JSON object",
            code="neuronx.sentence-files",
            hints=("fetch the file again from the model's own repository",),
        )
    return document
