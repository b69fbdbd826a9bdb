"""Stands in for models/application_base.py of NxD Inference 0.1.1."""

# Signatures of others.
# ruff: noqa: ARG002, FBT001, FBT002

from __future__ import annotations

from math import log2
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from neuronx_distributed_inference.models.config import InferenceConfig


class NeuronApplicationBase:
    """A decoder that is compiled and loaded."""

    config_class: type[InferenceConfig] = InferenceConfig

    def __init__(
        self, model_path: str, config: Any = None, neuron_config: Any = None
    ) -> None:
        self.model_path = model_path
        self.config = config or self.config_class.load(model_path)
        settings = self.config.neuron_config
        self.neuron_config = settings
        self.models = [
            _wrapper(
                "context_encoding_model",
                settings,
                settings.context_encoding_buckets,
                settings.max_context_length,
            ),
            _wrapper(
                "token_generation_model",
                settings,
                settings.token_generation_buckets,
                settings.max_length,
            ),
        ]

    @classmethod
    def get_config_cls(cls) -> type[InferenceConfig]:
        """The class of the model's settings."""
        return cls.config_class

    @classmethod
    def get_neuron_config_cls(cls) -> type:
        """The class of the compilation's settings."""
        return cls.config_class.get_neuron_config_cls()

    @classmethod
    def save_quantized_state_dict(
        cls, model_path: str, config: InferenceConfig
    ) -> None:
        """Round each matrix to int8 with a scale per row."""
        from safetensors.torch import save_file

        place = Path(config.neuron_config.quantized_checkpoints_path)
        found = {}
        for name, weight in _weights(model_path).items():
            if weight.dim() != 2 or "embed" in name:
                found[name] = weight
                continue
            scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
            found[name] = (weight.float() / scale).round().clamp(-127, 127).char()
            found[name.removesuffix(".weight") + ".scale"] = scale
        save_file(found, place / "model.safetensors")

    def compile(
        self,
        compiled_model_path: str,
        debug: bool = False,
        pre_shard_weights_hook: Any = None,
    ) -> None:
        """Settings, graphs and weights by rank."""
        from safetensors.torch import save_file

        place = Path(compiled_model_path)
        self.config.save(compiled_model_path)
        (place / "model.pt").write_bytes(b"graphs")
        settings = self.neuron_config
        source = self.model_path
        if settings.quantized:
            source = settings.quantized_checkpoints_path
        if not settings.save_sharded_checkpoint:
            return
        (place / "weights").mkdir()
        ranks = settings.tp_degree
        for rank in range(ranks):
            part = {
                name: (w if w.shape[0] % ranks else w.chunk(ranks)[rank]).contiguous()
                for name, w in _weights(source).items()
            }
            save_file(part, place / f"weights/tp{rank}_sharded_checkpoint.safetensors")

    def load(self, compiled_model_path: str) -> None:
        """Graphs and the weights of every rank."""
        from safetensors.torch import load_file

        place = Path(compiled_model_path)
        if not (place / "model.pt").is_file():
            raise ValueError("The provided filename does not exist")
        for rank in range(self.neuron_config.tp_degree):
            load_file(place / f"weights/tp{rank}_sharded_checkpoint.safetensors")


def _weights(folder: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(folder)
    return {name: w for path in files for name, w in load_file(path).items()}


def _wrapper(
    tag: str, settings: Any, given: list[int] | None, longest: int
) -> SimpleNamespace:
    buckets = given or [longest]
    if settings.enable_bucketing and given is None:
        powers = range(7, round(log2(longest)))
        buckets = [2**power for power in powers] + [longest]
    return SimpleNamespace(
        tag=tag,
        neuron_config=SimpleNamespace(buckets=buckets),
        compiler_args="--auto-cast=none --model-type=transformer -O1",
    )
