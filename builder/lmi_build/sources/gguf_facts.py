"""Turn a GGUF header into `ModelFacts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.sources.consistency import check_consistency
from lmi_build.sources.gguf_model import config_from_gguf, hf_name
from lmi_build.sources.gguf_tokenizer import check_tokenizer
from lmi_build.values.model import (
    FileFact,
    ModelFacts,
    TensorFact,
    geometry_from_config,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.sources.gguf import GgufHeader
    from lmi_build.values.recipe import ModelSpec

# What `dtype: auto` means where the source holds blocks of integers: the type that
# the models of this format were trained in.
DEFAULT_DTYPE = "bfloat16"

# The file's name stays out of the key: renaming it changes no byte of the result.
GGUF_NAME = "model.gguf"


def summarise_gguf(header: GgufHeader, *, file: str, size: int) -> dict[str, Any]:
    """
    What of a header the planner needs, as JSON that can be cached.

    Raises:
        Unsupported: The file holds a model that cannot be rebuilt exactly.
        SourceInvalid: The header contradicts itself.
    """
    check_tokenizer(header.metadata, file=file)
    return {
        "config": config_from_gguf(header, dtype=DEFAULT_DTYPE, file=file),
        "size": size,
        "tensors": sorted(
            [hf_name(tensor.name), list(tensor.shape)] for tensor in header.tensors
        ),
    }


def facts_of_gguf(
    summary: Mapping[str, Any], *, kind: str, location: str, spec: ModelSpec
) -> ModelFacts:
    """
    Facts from a summary that also has its `digest`.

    Args:
        summary: Of `summarise_gguf`.
        kind: `gguf`, also for one in a bucket: what fetch does with it is the same.
        location: Path or URL.
        spec: The recipe's section.

    Raises:
        SourceInvalid: `source.config-mismatch`.
    """
    dtype = DEFAULT_DTYPE if spec.dtype == "auto" else spec.dtype
    config = {**summary["config"], "torch_dtype": dtype}
    geometry = geometry_from_config(config)
    tensors = tuple(
        TensorFact(name=name, dtype=dtype, shape=tuple(shape), file="model.safetensors")
        for name, shape in summary["tensors"]
    )
    check_consistency(spec.source, config=config, geometry=geometry, tensors=tensors)
    return ModelFacts(
        kind=kind,
        source=spec.source,
        location=location,
        revision="",
        geometry=geometry,
        config=config,
        files=(
            FileFact(path=GGUF_NAME, size=summary["size"], digest=summary["digest"]),
        ),
        tensors=tensors,
        dtype=dtype,
    )
