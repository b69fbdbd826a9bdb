"""What is converted: a model of Hugging Face, as the checkpoint's writer sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.models import is_since, trtllm_models, value_at
from lmi_build.catalog.architectures import architectures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.trtllm.models import TrtllmModel
    from lmi_build.catalog.architectures import Architecture
    from lmi_build.values.model import ModelGeometry


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceModel:
    """
    What is converted.

    Args:
        row: What TensorRT-LLM has for it.
        architecture: Where its parts are, located in these files.
        geometry: Its sizes.
        shapes: Shape of every tensor of the files.
        dtype: Of the checkpoint.
        num_experts: Experts of a block; 0 where there are none.
        parallel_embedding: The embedding is split over ranks.
        shared_head: The head is left out; the embedding serves for it.
        quantized: Linears that the files hold as codes.
    """

    row: TrtllmModel
    architecture: Architecture
    geometry: ModelGeometry
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    num_experts: int = 0
    parallel_embedding: bool = False
    shared_head: bool = False
    quantized: frozenset[str] = frozenset()

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        head = f"{self.architecture.head}.weight"
        return self.geometry.tie_word_embeddings or head not in self.shapes


def source_model(
    geometry: ModelGeometry,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    version: str,
    dtype: str,
    quantized: frozenset[str] = frozenset(),
) -> SourceModel:
    """
    What is to be converted.

    Args:
        geometry: The model's sizes.
        config: Its `config.json`.
        shapes: Shape of every tensor of its files.
        version: Of TensorRT-LLM.
        dtype: Of the checkpoint.
        quantized: Linears that the files hold as codes.

    Raises:
        KeyError: Its architecture is not one that `checkpoint_problems` lets through.
    """
    name = geometry.architecture
    architecture = architectures()[name].locate(shapes)
    key = architecture.keys.get("num_experts", "num_experts")
    row = trtllm_models()[name]
    return SourceModel(
        row=row,
        architecture=architecture,
        geometry=geometry,
        shapes=shapes,
        dtype=dtype,
        num_experts=int(config.get(key) or 0) if architecture.experts else 0,
        parallel_embedding=is_since(version, row.parallel_embedding),
        shared_head=bool(value_at(row.shared_head, version)),
        quantized=quantized,
    )
