"""Stands in for neuron/models/inference/backend/config.py of v0.4."""

# Signatures of others.
# ruff: noqa: PLR0913, FBT001, FBT002

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optimum.neuron.version import __version__, compiler_version

_KEY = "NxDNeuronConfig"
_DTYPES = ("float32", "float16", "bfloat16")


class IncompatibleConfigError(ValueError):
    """Two arguments that exclude each other."""


class NxDNeuronConfig:
    """The settings of an export."""

    def __init__(
        self,
        checkpoint_id: str | None = None,
        checkpoint_revision: str | None = None,
        batch_size: int | None = 1,
        max_batch_size: int | None = None,
        continuous_batching: bool | None = False,
        speculation_length: int | None = 0,
        sequence_length: int | None = 128,
        tp_degree: int | None = 1,
        ep_degree: int | None = 1,
        pp_degree: int | None = 1,
        torch_dtype: Any = "bfloat16",
        n_active_tokens: int | None = None,
        max_context_length: int | None = None,
        output_logits: bool | None = False,
        fused_qkv: bool | None = False,
        target: str | None = None,
        on_device_sampling: bool | None = False,
        max_topk: int | None = 256,
        start_rank_id: int | None = 0,
        local_ranks_size: int | None = None,
        capacity_factor: float | None = None,
        glu_mlp: bool = True,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        if torch_dtype not in _DTYPES:
            raise ValueError(f"{torch_dtype} is no type")
        if speculation_length and on_device_sampling:
            raise IncompatibleConfigError("Speculative decoding is incompatible")
        import torch

        vars(self).update(given)
        self.torch_dtype = getattr(torch, torch_dtype)
        self.n_active_tokens = n_active_tokens or sequence_length
        self.max_context_length = max_context_length or sequence_length
        self.max_batch_size = max_batch_size or batch_size
        self.local_ranks_size = local_ranks_size or tp_degree

    def save_pretrained(self, save_directory: str) -> None:
        """Write `neuron_config.json`."""
        document = {
            **vars(self),
            "torch_dtype": str(self.torch_dtype).split(".")[1],
            "_serialized_key": _KEY,
            "optimum_neuron_version": __version__,
            "neuronxcc_version": compiler_version(),
        }
        path = Path(save_directory) / "neuron_config.json"
        path.write_text(json.dumps(document, indent=2, sort_keys=True), "utf-8")

    @classmethod
    def from_pretrained(cls, model_id: str) -> NxDNeuronConfig:
        """Read it, unless it is of another version."""
        document = json.loads(
            (Path(model_id) / "neuron_config.json").read_text("utf-8")
        )
        if document.pop("optimum_neuron_version") != __version__:
            raise ValueError("generated with another optimum-neuron version")
        if document.pop("neuronxcc_version") != compiler_version():
            raise RuntimeError("exported using another version of the compiler")
        assert document.pop("_serialized_key") == _KEY
        return cls(**document)
