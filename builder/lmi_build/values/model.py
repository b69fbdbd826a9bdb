"""What is known about a model before a weight is read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue

# Bits of one element, by the names safetensors and GGUF headers are mapped to.
DTYPE_BITS: Mapping[str, int] = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFact:
    """
    One tensor as a header describes it.

    Args:
        name: Its Hugging Face name.
        dtype: A name of `DTYPE_BITS`, or a GGUF block type such as `Q4_1`.
        shape: Row-major, as PyTorch has it.
        file: The file that holds it, relative to the model.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFact:
    """
    One file of the model.

    Args:
        path: Relative to the model, with forward slashes.
        size: Bytes.
        digest: `sha256:...` of the content, or `git-sha1:...` where a hub only tells
            the blob id of a small file.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelGeometry:
    """
    The sizes of a decoder, read from its `config.json`.

    Args:
        architecture: First entry of `architectures`, such as `LlamaForCausalLM`.
        model_type: `model_type`, such as `llama`.
        num_layers: Decoder blocks.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the feed-forward part.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        head_dim: Width of one head.
        vocab_size: Rows of the embedding.
        max_position_embeddings: Positions the model was made for; 0 where they are
            relative and `config.json` names none.
        tie_word_embeddings: Whether the head shares the embedding's weights.
    """

    architecture: str
    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text; without end where positions are relative."""
        return self.max_position_embeddings or sys.maxsize


# Older architectures spell the same sizes otherwise; first match wins.
_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model", "dim"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "seq_length",
    ),
}


# T5's kind learns a bias by distance, in so many classes, and has no last position;
# transformers 5 writes no `n_positions` for it.
_RELATIVE = "relative_attention_num_buckets"


def geometry_from_config(config: Mapping[str, Any]) -> ModelGeometry:
    """
    Read a Hugging Face `config.json`.

    Raises:
        ValueError: A size that every decoder has is missing, or is no positive whole
            number, or `architectures` is no list of names.
    """
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config

    def find(*spellings: str) -> int | None:
        for spelling in spellings:
            value = config.get(spelling)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                msg = f"`{spelling}` is {value!r}, it must be a positive whole number"
                raise ValueError(msg)
            return value
        return None

    def size(name: str) -> int:
        value = find(*_SPELLINGS[name])
        if value is None:
            msg = f"`{_SPELLINGS[name][0]}` is missing"
            raise ValueError(msg)
        return value

    hidden = size("hidden_size")
    heads = size("num_attention_heads")
    positions = find(*_SPELLINGS["max_position_embeddings"])
    if positions is None:
        positions = 0 if config.get(_RELATIVE) else size("max_position_embeddings")
    return ModelGeometry(
        architecture=_architecture(config.get("architectures")),
        model_type=str(config.get("model_type", "unknown")),
        num_layers=size("num_layers"),
        hidden_size=hidden,
        intermediate_size=find("intermediate_size", "ffn_dim", "n_inner", "hidden_dim")
        or 4 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=find("num_key_value_heads") or heads,
        head_dim=find("head_dim") or hidden // heads,
        vocab_size=size("vocab_size"),
        max_position_embeddings=positions,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def _architecture(names: object) -> str:
    if not names:
        return "unknown"
    if not isinstance(names, list | tuple) or not isinstance(names[0], str):
        msg = f"`architectures` is {names!r}, it must be a list of names"
        raise ValueError(msg)  # noqa: TRY004 - one error for all that is wrong in it
    return names[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """
    A model pinned down: everything the planner may know about it.

    Args:
        kind: `hub`, `folder`, `s3` or `gguf`.
        source: What the recipe said.
        location: What the fetch stage reads; never in a key.
        revision: Full commit on a hub, else empty.
        geometry: Its sizes.
        config: The whole `config.json`, as far as it is known before fetching.
        files: What fetch takes, sorted by path; their digests are the identity.
        tensors: Every tensor, sorted by name.
        dtype: The dtype most of the weights have, or will have after fetch.
        num_skipped_bytes: Bytes of files that are not needed and not fetched.
    """

    kind: str
    source: str
    location: str
    revision: str
    geometry: ModelGeometry
    config: Mapping[str, JSONValue]
    files: tuple[FileFact, ...]
    tensors: tuple[TensorFact, ...]
    dtype: str
    num_skipped_bytes: int = 0

    @property
    def fetch_bytes(self) -> int:
        """Bytes of all files that fetch takes."""
        return sum(fact.size for fact in self.files)
