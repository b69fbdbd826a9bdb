"""
Write the tokenizer of a GGUF file as `tokenizer.json`.

A GGUF file has the vocabulary, the merges and the *name* of a pre-tokenizer. The name
stands for a splitting rule kept in ggml's source; a converter that does not know it
must not guess, because a wrong split gives other tokens without any error. So each
name is spelt out here, and an unknown one is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid, Unsupported
from lmi_build.sources.gguf import ArrayLength
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Keys whose arrays the worker reads in full.
TOKENIZER_ARRAYS = (
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
)
_CONTROL, _USER_DEFINED = 3, 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_DIGITS = {"type": "Digits", "individual_digits": True}

# ggml's name -> the steps before byte-pair merging. Sources: llama.cpp's
# `llm_tokenizer_bpe` and the `tokenizer.json` of the models that the names stand for.
_PRE_TOKENIZERS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "gpt-2": (_byte_level(use_regex=True),),
    "smollm": (_DIGITS, _byte_level(use_regex=True)),
    "llama-bpe": (_split(_LLAMA3), _byte_level(use_regex=False)),
    "qwen2": (_split(_QWEN2), _byte_level(use_regex=False)),
}
_NORMALIZERS: Mapping[str, dict[str, Any]] = {"qwen2": {"type": "NFC"}}
# Families whose beginning-of-sequence token is added unless the file says no.
_BOS_BY_DEFAULT = frozenset({"llama-bpe"})


def check_tokenizer(metadata: Mapping[str, Any], *, file: str) -> None:
    """
    Refuse, before any work, a tokenizer that cannot be written exactly.

    Raises:
        SourceInvalid: `source.no-tokenizer`.
        Unsupported: `source.gguf-tokenizer`.
    """
    for key in ("tokenizer.ggml.model", *TOKENIZER_ARRAYS[:2]):
        if key not in metadata and not (
            key.endswith("merges") and metadata.get("tokenizer.ggml.model") != "gpt2"
        ):
            raise SourceInvalid(
                f"`{file}` has no tokenizer: `{key}` is missing",
                code="source.no-tokenizer",
                hints=("take a GGUF file that was made with its vocabulary",),
            )
    model = metadata["tokenizer.ggml.model"]
    pre = metadata.get("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in _PRE_TOKENIZERS:
        known = join_words(sorted(_PRE_TOKENIZERS), last="and")
        raise Unsupported(
            f"`{file}` has tokenizer {model!r} with pre-tokenizer {pre!r}; byte-level"
            f" BPE (`gpt2`) with {known} can be rebuilt exactly",
            code="source.gguf-tokenizer",
            hints=("name the model's safetensors repository in `model.source`",),
        )


def write_tokenizer(
    metadata: Mapping[str, Any], out: Path, *, max_len: int, file: str
) -> None:
    """
    Write `tokenizer.json`, `tokenizer_config.json` and the chat template.

    Args:
        metadata: With the arrays of `TOKENIZER_ARRAYS` in full.
        out: Folder to write into.
        max_len: Positions of the model, in tokens.
        file: For messages.

    Raises:
        SourceInvalid: `source.bad-gguf`: vocabulary and merges do not fit together.
    """
    tokens = _array(metadata, "tokenizer.ggml.tokens", file=file)
    specials = _special_tokens(metadata, tokens, file=file)
    document = json.dumps(
        _tokenizer_document(metadata, tokens, specials, file=file), ensure_ascii=False
    )
    _check_loads(document, file=file)
    (out / "tokenizer.json").write_text(document, encoding="utf-8")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_len,
        **specials,
    }
    (out / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")


def _array(metadata: Mapping[str, Any], key: str, *, file: str) -> list[Any]:
    value = metadata.get(key)
    if isinstance(value, ArrayLength):
        msg = f"{key} was not kept while reading"
        raise TypeError(msg)
    if not isinstance(value, list):
        raise SourceInvalid(
            f"`{file}`: `{key}` is {value!r}, not an array",
            code="source.bad-gguf",
            hints=("convert the model to GGUF again with a current converter",),
        )
    return value


def _special_tokens(
    metadata: Mapping[str, Any], tokens: list[str], *, file: str
) -> dict[str, str]:
    keys = {
        "bos_token": "bos_token_id",
        "eos_token": "eos_token_id",
        "unk_token": "unknown_token_id",
        "pad_token": "padding_token_id",
    }
    found = {}
    for name, key in keys.items():
        token_id = metadata.get(f"tokenizer.ggml.{key}")
        if token_id is None:
            continue
        if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
            raise SourceInvalid(
                f"`{file}`: tokenizer.ggml.{key} is {token_id!r}, the vocabulary has"
                f" {len(tokens):,} tokens",
                code="source.bad-gguf",
                hints=("convert the model to GGUF again with a current converter",),
            )
        found[name] = tokens[token_id]
    return found


def _tokenizer_document(
    metadata: Mapping[str, Any],
    tokens: list[str],
    specials: Mapping[str, str],
    *,
    file: str,
) -> dict[str, Any]:
    pre = metadata["tokenizer.ggml.pre"]
    steps = _PRE_TOKENIZERS[pre]
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in {_CONTROL, _USER_DEFINED}
    ]
    merges = _array(metadata, "tokenizer.ggml.merges", file=file)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _NORMALIZERS.get(pre),
        "pre_tokenizer": (
            {"type": "Sequence", "pretokenizers": list(steps)}
            if len(steps) > 1
            else steps[0]
        ),
        "post_processor": _post_processor(metadata, pre, tokens, specials),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            # Llama 3's merges do not reach every token of its vocabulary.
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _post_processor(
    metadata: Mapping[str, Any],
    pre: str,
    tokens: list[str],
    specials: Mapping[str, str],
) -> dict[str, Any]:
    wanted = metadata.get("tokenizer.ggml.add_bos_token", pre in _BOS_BY_DEFAULT)
    bos = specials.get("bos_token")
    if not wanted or bos is None:
        return _byte_level(use_regex=True)
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, start, second],
        "special_tokens": {
            bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}
        },
    }


def _check_loads(document: str, *, file: str) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(document)
    # The library raises plain `Exception` for every fault of a document.
    except Exception as error:
        raise SourceInvalid(
            f"`{file}`: its vocabulary and merges make no tokenizer: {error}",
            code="source.bad-gguf",
            hints=("convert the model to GGUF again with a current converter",),
        ) from error
