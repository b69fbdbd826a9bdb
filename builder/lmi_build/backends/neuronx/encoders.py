"""Encoders, their tasks and their positions, read from data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx import PACKAGE
from lmi_build.catalog.tables import read_row, read_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "encoders.toml"
EMBEDDING = "feature-extraction"
POSITIONS = ("all", "after-padding")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderTask:
    """
    What an encoder can be asked for.

    Args:
        name: As Hugging Face names it.
        suffix: End of the architecture's name that means it.
        auto_class: Dotted path of the class that loads such a model.
        summary: What it answers.
        refused: Why it is not built; empty where it is.
    """

    name: str
    suffix: str
    auto_class: str = ""
    summary: str = ""
    refused: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderModel:
    """
    One model type.

    Args:
        name: `model_type` of `config.json`.
        class_prefix: Begin of its architectures' names.
        inputs: Tensors of its graph, in order; all int64 `[B, T]`.
        padding_id: Padding token where `config.json` names none.
        positions: `all`, or `after-padding`: those up to the padding token's are
            never used.
    """

    name: str
    class_prefix: str
    inputs: tuple[str, ...]
    padding_id: int
    positions: str = "all"


@cache
def _tables() -> Mapping[str, Mapping[str, Any]]:
    return read_tables(FILE, package=PACKAGE)


@cache
def encoder_tasks() -> Mapping[str, EncoderTask]:
    """
    Every task by its name, those that are not built too.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return MappingProxyType(
        {
            name: read_row(
                EncoderTask, {"name": name, **row}, where=f"{FILE}: [task.{name}]"
            )
            for name, row in _tables()["task"].items()
        }
    )


@cache
def encoder_models() -> Mapping[str, EncoderModel]:
    """
    Every encoder by its model type.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    found = {}
    for name, row in _tables()["model"].items():
        where = f"{FILE}: [model.{name}]"
        model = read_row(EncoderModel, {"name": name, **row}, where=where)
        if model.positions not in POSITIONS:
            raise ValueError(f"{where}, `positions` is {model.positions!r}")
        found[name] = model
    return MappingProxyType(found)


def is_encoder(config: Mapping[str, Any]) -> bool:
    """
    Whether a model reads a text at once and generates nothing.

    Args:
        config: Its `config.json`.

    Example:
        >>> is_encoder({"model_type": "bert", "architectures": ["BertModel"]})
        True
    """
    if config.get("model_type") not in encoder_models():
        return False
    # Bert and others can be decoders as well, under a name that says so.
    names = config.get("architectures") or []
    causal = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    return not causal and not config.get("is_decoder", False)


def task_of(config: Mapping[str, Any], *, sentence: bool) -> str:
    """
    The task that a model was trained for; empty where its architecture tells none.

    Args:
        config: Its `config.json`.
        sentence: sentence-transformers files lie beside it, which make it a sentence
            encoder whatever head its weights once had.
    """
    if sentence:
        return EMBEDDING
    model = encoder_models()[str(config["model_type"])]
    names = config.get("architectures") or [""]
    suffix = str(names[0]).removeprefix(model.class_prefix)
    return next((t.name for t in encoder_tasks().values() if t.suffix == suffix), "")


def padding_id(config: Mapping[str, Any]) -> int:
    """Token that fills up a row, as the model's own position numbers expect it."""
    value = config.get("pad_token_id")
    model = encoder_models()[str(config["model_type"])]
    return value if isinstance(value, int) else model.padding_id


def usable_positions(config: Mapping[str, Any], positions: int) -> int:
    """
    Longest text in tokens.

    Args:
        config: Its `config.json`.
        positions: Rows of its position embedding.

    Example:
        RoBERTa has 514 rows and padding token 1:

        >>> usable_positions({"model_type": "roberta", "pad_token_id": 1}, 514)
        512
    """
    if encoder_models()[str(config["model_type"])].positions == "all":
        return positions
    return positions - padding_id(config) - 1
