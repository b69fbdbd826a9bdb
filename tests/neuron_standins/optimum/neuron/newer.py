"""Stands in for neuron/models/inference of v0.4."""

# Signatures of others.
# ruff: noqa: ARG002, ARG003, FBT001, FBT002

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optimum.neuron.models.inference.backend.config import NxDNeuronConfig
from optimum.neuron.version import available_cores

_MODELS = ("granite", "llama", "mixtral", "phi3", "qwen2", "qwen3", "smollm3")


class NeuronModelForCausalLM:
    """The decoder, exported or loaded."""

    def __init__(self, config: Any, neuron_config: NxDNeuronConfig) -> None:
        self.config, self.neuron_config = config, neuron_config

    @classmethod
    def export(
        cls,
        model_id: str,
        neuron_config: NxDNeuronConfig,
        config: Any = None,
        token: Any = None,
        revision: str | None = None,
        load_weights: bool | None = False,
        **kwargs: Any,
    ) -> NeuronModelForCausalLM:
        """Compile a model."""
        text = (Path(model_id) / "config.json").read_text("utf-8")
        config = SimpleNamespace(**json.loads(text), _name_or_path=model_id)
        if os.environ.get("STANDIN_TEXT_CONFIG"):
            # The settings of a text model inside a larger one know no folder.
            config._name_or_path = ""
        if config.model_type not in _MODELS:
            raise ValueError(f"{config.model_type} is not supported")
        override = os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE")
        if override != neuron_config.target:
            raise ValueError(f"The compilation target is {neuron_config.target}")
        if neuron_config.max_context_length != neuron_config.sequence_length:
            # The mask of a prompt has the sequence's length in both directions.
            raise RuntimeError("The size of the mask must match the size of the scores")
        if load_weights and not available_cores():
            raise RuntimeError("no Neuron device")
        return cls(config, neuron_config)

    def shard_checkpoint(
        self, src_path: str, dest_path: str, debug: bool = False
    ) -> None:
        """Split weights over ranks."""
        shard(src_path, Path(dest_path) / "weights", self.neuron_config.tp_degree)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Settings, graphs, and weights where the settings know their folder."""
        place = Path(save_directory)
        place.mkdir(parents=True, exist_ok=True)
        self.neuron_config.save_pretrained(save_directory)
        text = json.dumps(vars(self.config), indent=2)
        (place / "config.json").write_text(text, "utf-8")
        (place / "model.pt").write_bytes(b"two graphs")
        source = self.config._name_or_path
        if source and Path(source).is_dir():
            self.shard_checkpoint(source, str(place / "checkpoint"))

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> NeuronModelForCausalLM:
        """Load what was exported."""
        config = json.loads((Path(model_id) / "config.json").read_text("utf-8"))
        made = NxDNeuronConfig.from_pretrained(model_id)
        if available_cores() < made.tp_degree:
            raise ValueError(f"The model requires at least {made.tp_degree} cores")
        if not (Path(model_id) / "model.pt").is_file():
            raise ValueError("The provided filename does not exist")
        for rank in range(made.tp_degree):
            name = f"checkpoint/weights/tp{rank}_sharded_checkpoint.safetensors"
            if not (Path(model_id) / name).is_file():
                raise FileNotFoundError(name)
        return cls(SimpleNamespace(**config), made)


def shard(source: str, place: Path, ranks: int) -> None:
    """Rows of each tensor by rank, the rest on every one."""
    from safetensors.torch import load_file, save_file

    place.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(source)
    weights = {name: w for path in files for name, w in load_file(path).items()}
    for rank in range(ranks):
        part = {
            name: (w if w.shape[0] % ranks else w.chunk(ranks)[rank]).contiguous()
            for name, w in weights.items()
        }
        save_file(part, place / f"tp{rank}_sharded_checkpoint.safetensors")
