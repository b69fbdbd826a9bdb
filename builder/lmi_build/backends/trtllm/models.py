"""Architectures as TensorRT-LLM knows them, read from data."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - `read_row` resolves it
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

from lmi_build.backends.trtllm import PACKAGE
from lmi_build.catalog.tables import read_row, read_tables
from lmi_build.text import join_words

FILE = "models.toml"
# What `quantization` may say: formats of a compiled model.
QUANTIZATIONS = ("fp8", "smoothquant", "int8", "int4", "awq", "gptq")
# Parts of a decoder that a checkpoint has names for.
PARTS = (
    "embedding",
    "positions",
    "blocks",
    "final_norm",
    "head",
    "attention_norm",
    "mlp_norm",
    "qkv",
    "output",
    "gate",
    "up",
    "down",
    "router",
    "experts_in",
    "experts_out",
)
_VERSION = re.compile(r"(\d+)\.(\d+)")
_BASE = "base"
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrtllmModel:
    """
    What TensorRT-LLM has for one architecture of Hugging Face.

    A version such as `0.10` means that release of TensorRT-LLM and all later ones; an
    empty one means never. A table whose keys are versions holds what is true from each
    of them on.

    Args:
        name: Entry of `architectures` in the model's `config.json`.
        family: Which class of TensorRT-LLM computes it.
        since: First version that has it as a unified checkpoint.
        architecture: `architecture` of the checkpoint's `config.json`.
        converter: NVIDIA's own script, in TensorRT-LLM's repository.
        quantization: Which of `QUANTIZATIONS` are supported.
        ours: From which version on lmi-build writes its checkpoint; elsewhere the
            converter does.
        pipeline: From which version on its layers can be split over pipeline stages.
        head_size: From which version on a head may be wider than its share of the
            hidden size.
        rope: Kinds of stretched rotary embeddings, separated by spaces.
        names: Parts of the decoder, by the names of `PARTS`; those of a block are
            relative to it.
        parallel_embedding: From which version on the embedding is split over
            tensor-parallel ranks.
        shared_head: Whether the head is left out, as the embedding's own tensor serves
            for it; such a model has no pipeline stages.
        encoder: It has an encoder, and so bounds of its own for it.
    """

    name: str
    family: str
    since: str
    architecture: Mapping[str, str]
    converter: Mapping[str, str]
    quantization: tuple[str, ...]
    ours: str = ""
    pipeline: str = ""
    head_size: str = ""
    rope: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    parallel_embedding: str = ""
    shared_head: Mapping[str, bool] = field(default_factory=dict)
    encoder: bool = False

    def supported(self, version: str) -> bool:
        """Whether a version of TensorRT-LLM can build it at all."""
        return is_since(version, self.since)

    def writable(self, version: str) -> bool:
        """Whether lmi-build writes its checkpoint for a version."""
        return self.supported(version) and is_since(version, self.ours)


def version_key(version: str) -> tuple[int, int]:
    """
    Major and minor number of a version such as `0.21.0rc1`.

    Raises:
        ValueError: It does not begin with two numbers.
    """
    match = _VERSION.match(version)
    if match is None:
        raise ValueError(f"`{version}` is no version of TensorRT-LLM")
    return int(match[1]), int(match[2])


def is_since(version: str, first: str) -> bool:
    """Whether a version is `first` or later; an empty `first` is never reached."""
    return bool(first) and version_key(version) >= version_key(first)


def value_at(table: Mapping[str, _Value], version: str) -> _Value | None:
    """What is true at a version in a table by version, or None before its first."""
    reached = [first for first in table if is_since(version, first)]
    return table[max(reached, key=version_key)] if reached else None


@cache
def trtllm_models() -> Mapping[str, TrtllmModel]:
    """
    Every architecture by its name in Hugging Face.

    Raises:
        ValueError: The data file has a wrong key; a fault of the package.
    """
    tables = read_tables(FILE, package=PACKAGE)
    return MappingProxyType(
        {name: _model(name, _inherit(name, tables)) for name in tables}
    )


def known_architectures(version: str) -> str:
    """The architectures that a version supports, as a list in words."""
    names = [name for name, row in trtllm_models().items() if row.supported(version)]
    return join_words(sorted(names), last="and")


def _inherit(name: str, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A table with what it takes over; names are merged one by one."""
    own = dict(tables[name])
    base = own.pop(_BASE, None)
    if base is None:
        return own
    merged = _inherit(base, tables)
    names = {**merged.get("names", {}), **own.pop("names", {})}
    return {**merged, **own, "names": names}


def _model(name: str, table: Mapping[str, Any]) -> TrtllmModel:
    where = f"{FILE}: [{name}]"
    row = read_row(TrtllmModel, {"name": name, **table}, where=where)
    for key, allowed in (("quantization", QUANTIZATIONS), ("names", PARTS)):
        wrong = sorted(set(getattr(row, key)) - set(allowed))
        if wrong:
            raise ValueError(f"{where} has unknown {key} {wrong}")
    versions = [row.since, row.ours, row.pipeline, row.head_size]
    versions.append(row.parallel_embedding)
    versions += [*row.architecture, *row.converter, *row.rope, *row.shared_head]
    for version in filter(None, versions):
        version_key(version)
    return row
