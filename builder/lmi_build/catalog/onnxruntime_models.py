"""Decoders that the backend `onnxruntime` builds, read from data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.catalog.tables import read_named_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "onnxruntime_models.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxRuntimeModel:
    """
    One architecture.

    Args:
        name: Entry of `architectures` in `config.json`.
        model_type: Of transformers.
        packed: Whether a quantized checkpoint was compared, too.
        norm_epsilon: Key of config.json with the norms' epsilon, where the builder
            looks for another and takes its own default.
        scaled_embedding: Whether embeddings are multiplied by the root of their width,
            which the builder rounds to two decimals.
        local_rope: Whether config.json has rotary parameters for each kind of
            attention; the builder knows the older form, flat and with
            `rope_local_base_freq`.
        windowed: Whether `sliding_window` is for every layer; the builder reads it only
            where config.json lists the kinds of layers.
        refused: Why it is refused although the builder takes it; empty where it is
            built.
    """

    name: str
    model_type: str
    packed: bool
    norm_epsilon: str = ""
    scaled_embedding: bool = False
    local_rope: bool = False
    windowed: bool = False
    refused: str = ""


@cache
def onnxruntime_models() -> Mapping[str, OnnxRuntimeModel]:
    """
    Every architecture by name, in the file's order.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return read_named_rows(OnnxRuntimeModel, FILE)
