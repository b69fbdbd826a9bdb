"""
A model's folder as a library's release of transformers reads it.

Weights are linked, only small files are written anew. What changed between releases:

| in the file | since 5 | before 5 |
| --- | --- | --- |
| base of the rotary embedding | `rope_parameters.rope_theta` | `rope_theta` |
| its scaling | the rest of `rope_parameters` | `rope_scaling` |
| float type | `dtype` | `torch_dtype` |
| class of a plain tokenizer | `TokenizersBackend` | `PreTrainedTokenizerFast` |

Release 5 reads the older spellings itself. What the library writes of these files is
never used: the result carries the source's own.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.reader import INDEX_NAME
from lmi_build.quantizers.documents import read_document

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NEW_MAJOR = 5
# Tokenizer classes that are in every release; any other may be a model's own code.
_PLAIN_TOKENIZER = "PreTrainedTokenizerFast"
# Keys of `tokenizer_config.json` that mean the same in all releases.
_TOKENIZER_KEYS = (
    "add_bos_token",
    "add_eos_token",
    "bos_token",
    "chat_template",
    "clean_up_tokenization_spaces",
    "eos_token",
    "model_max_length",
    "pad_token",
    "unk_token",
)


def config_for(config: Mapping[str, Any], *, major: int) -> dict[str, Any]:
    """
    A `config.json` in the spelling of a major release of transformers.

    Args:
        config: Of any release.
        major: Of the release that reads it.
    """
    found = {k: v for k, v in config.items() if k != "auto_map"}
    if major >= _NEW_MAJOR:
        return found
    dtype = found.pop("dtype", None)
    if dtype is not None:
        found.setdefault("torch_dtype", dtype)
    rope = found.pop("rope_parameters", None)
    if isinstance(rope, dict):
        rest = dict(rope)
        theta = rest.pop("rope_theta", None)
        if theta is not None:
            found.setdefault("rope_theta", theta)
        if "partial_rotary_factor" in rest:
            found.setdefault("partial_rotary_factor", rest.pop("partial_rotary_factor"))
        if rest.get("rope_type", "default") != "default":
            found.setdefault("rope_scaling", rest)
    return found


def tokenizer_config_for(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer_config.json` that needs no class but the plain one."""
    kept = {k: config[k] for k in _TOKENIZER_KEYS if config.get(k) is not None}
    return {**kept, "tokenizer_class": _PLAIN_TOKENIZER}


def make_readable(model: Path, folder: Path, *, major: int) -> None:
    """
    Lay a model out for a library.

    Args:
        model: The stage's input; nothing in it is changed.
        folder: Empty.
        major: Of the transformers that reads it.

    Raises:
        SourceInvalid: `source.config`, when a JSON file cannot be read.
    """
    for path in sorted(model.iterdir()):
        linked = path.suffix == ".safetensors" or path.name in {
            INDEX_NAME,
            "chat_template.jinja",
            "generation_config.json",
            "tokenizer.json",
        }
        if path.is_file() and linked:
            (folder / path.name).symlink_to(path.absolute())
    config = config_for(read_document(model / "config.json"), major=major)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    if (model / "tokenizer.json").is_file():
        path = model / "tokenizer_config.json"
        told = read_document(path) if path.is_file() else {}
        text = json.dumps(tokenizer_config_for(told))
        (folder / "tokenizer_config.json").write_text(text, "utf-8")
