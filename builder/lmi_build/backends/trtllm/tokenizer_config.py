"""A `tokenizer_config.json` whose class the serving image can load."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "tokenizer_config.json"
# Reads any tokenizer.json, in every version of transformers since 4.
GENERIC = "PreTrainedTokenizerFast"
# Classes that transformers 5 writes and 4 does not have.
TOO_NEW = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend")


def class_problem(config: Mapping[str, Any]) -> str:
    """
    Why the class of a tokenizer is not found beside an engine, or an empty text.

    `config.json` is the engine's there, so nothing else can name the class.

    Args:
        config: The content of `tokenizer_config.json`; empty without one.

    Source: transformers 4.51 `AutoTokenizer.from_pretrained`.
    """
    if config.get("auto_map"):
        return ""
    named = config.get("tokenizer_class")
    if not named:
        return "names no `tokenizer_class`"
    if named in TOO_NEW:
        return f"names the class {named}, which transformers has from 5 on only"
    return ""


def served_tokenizer_config(
    data: bytes | None, *, only_unknown: bool = False
) -> bytes | None:
    """
    The file as it must lie beside an engine, or None when it may stay as it is.

    Only for tokenizers with a `tokenizer.json`, which the class that is put in reads.

    Args:
        data: The model's own file; None without one.
        only_unknown: A file that names no class is left alone, since the model's
            `config.json` lies beside it.

    Raises:
        SourceInvalid: `source.tokenizer-config`, when it is not a JSON object.
    """
    config = {} if data is None else _object(data)
    if not class_problem(config):
        return None
    if only_unknown and not config.get("tokenizer_class"):
        return None
    text = json.dumps({**config, "tokenizer_class": GENERIC}, indent=2, sort_keys=True)
    return (text + "\n").encode()


def _object(data: bytes) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _invalid(f"holds a {type(config).__name__}, not an object")
    return config


def _invalid(reason: str) -> SourceInvalid:
    return SourceInvalid(
        f"{NAME} {reason}",
        code="source.tokenizer-config",
        hints=("fetch the model again, or repair that file",),
    )
