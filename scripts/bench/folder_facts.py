"""What the planner knows of a local folder, without hashing its files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lmi_build.checkpoint.header import read_header
from lmi_build.values.model import ModelFacts, TensorFact, geometry_from_config

if TYPE_CHECKING:
    from pathlib import Path


def folder_facts(folder: Path) -> ModelFacts:
    """Facts of a Hugging Face folder, from its headers."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tensors = tuple(
        TensorFact(name=e.name, dtype=e.dtype, shape=e.shape, file=path.name)
        for path in sorted(folder.glob("*.safetensors"))
        for e in read_header(path).tensors.values()
    )
    return ModelFacts(
        kind="folder",
        source=str(folder),
        location=str(folder),
        revision="",
        geometry=geometry_from_config(config),
        config=config,
        files=(),
        tensors=tensors,
        dtype=tensors[0].dtype,
    )
