"""Stands in for neuron/modeling_decoder.py of v0.0.20 to v0.0.27."""

# Signatures of others.
# ruff: noqa: PLR0913, ARG002, ARG003, FBT001, FBT002

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optimum.neuron.version import VERSION, available_cores, compiler_version

# model_type: continuous batching, layout of attention, graphs of prompts.
_EXPORTERS = {
    "gpt2": (False, "HSB", 0),
    "llama": (True, "BSH", 1),
    "opt": (False, "HSB", 2),
    "bloom": (False, "HSB", 1),
    "mistral": (True, "HSB", 1),
}


class NeuronModelForCausalLM:
    """The decoder, exported or loaded."""

    def __init__(
        self,
        config: Any,
        checkpoint_dir: str,
        compiled_dir: str | None = None,
    ) -> None:
        self.config = config
        self.checkpoint_dir, self.compiled_dir = checkpoint_dir, compiled_dir
        block = config.neuron
        if block["num_cores"] > available_cores():
            raise ValueError(
                f"The specified number of cores ({block['num_cores']}) exceeds the"
                f" number of cores available ({available_cores()})."
            )
        self.model = _graphs(config, block)
        if compiled_dir is not None:
            found = {path.stem for path in Path(compiled_dir).glob("*.neff")}
            for name in self.model.hashes:
                if name not in found:
                    raise FileNotFoundError("Could not find a matching NEFF")

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        export: bool = False,
        force_download: bool = False,
        use_auth_token: str | None = None,
        cache_dir: str | None = None,
        subfolder: str = "",
        config: Any = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        revision: str | None = None,
        **kwargs: Any,
    ) -> NeuronModelForCausalLM:
        """Export a model, or load what was exported."""
        text = (Path(model_id) / "config.json").read_text("utf-8")
        config = SimpleNamespace(**json.loads(text))
        config._name_or_path = model_id
        method = cls._export if export else cls._from_pretrained
        return method(model_id, config, revision=revision, **kwargs)

    @classmethod
    def _export(
        cls,
        model_id: str,
        config: Any,
        use_auth_token: str | None = None,
        revision: str | None = None,
        task: str | None = None,
        batch_size: int | None = None,
        sequence_length: int | None = None,
        num_cores: int | None = None,
        auto_cast_type: str | None = "fp32",
        **kwargs: Any,
    ) -> NeuronModelForCausalLM:
        if not available_cores():
            raise SystemError(
                "Decoder models can only be exported on a neuron platform."
            )
        if config.model_type not in _EXPORTERS:
            raise KeyError(f"{config.model_type} is not supported yet")
        config.neuron = {
            "task": task or "text-generation",
            "batch_size": batch_size or 1,
            "num_cores": num_cores or available_cores(),
            "auto_cast_type": auto_cast_type,
            "sequence_length": sequence_length or 2048,
            "compiler_type": "neuronx-cc",
            "compiler_version": compiler_version(),
            "checkpoint_id": None,
            "checkpoint_revision": None,
        }
        return cls(config, model_id)

    @classmethod
    def _from_pretrained(
        cls, model_id: str, config: Any, revision: str | None = None, **kwargs: Any
    ) -> NeuronModelForCausalLM:
        block = getattr(config, "neuron", None)
        if block is None:
            raise ValueError("The specified directory does not contain a neuron model.")
        if _numbers(block["compiler_version"]) > _numbers(compiler_version()):
            raise RuntimeError("newer than current compiler")
        checkpoint, graphs = f"{model_id}/checkpoint", f"{model_id}/compiled"
        if not Path(checkpoint).is_dir():
            raise ValueError("Unable to fetch the neuron model weights files.")
        assert Path(graphs).is_dir()
        return cls(config, checkpoint, compiled_dir=graphs)

    def save_pretrained(
        self, save_directory: str, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Settings, weights and graphs."""
        place = Path(save_directory)
        place.mkdir(parents=True, exist_ok=True)
        text = json.dumps(vars(self.config), indent=2)
        (place / "config.json").write_text(text, "utf-8")
        (place / "generation_config.json").write_text("{}\n", "utf-8")
        shutil.copytree(self.checkpoint_dir, place / "checkpoint", dirs_exist_ok=True)
        if VERSION < (0, 0, 22):
            for path in (place / "checkpoint").glob("*.safetensors"):
                split = place / "checkpoint" / "pytorch_model.bin"
                split.mkdir(exist_ok=True)
                path.rename(split / "p0.weight")
        (place / "compiled").mkdir()
        for name in self.model.hashes:
            (place / "compiled" / f"{name}.neff").write_bytes(name.encode())


def _graphs(config: Any, block: dict[str, Any]) -> SimpleNamespace:
    """What transformers-neuronx would be asked for, and the names of its graphs."""
    continuous, layout, prompts = _EXPORTERS[config.model_type]
    batch, total = block["batch_size"], block["sequence_length"]
    options: dict[str, Any] = {}
    if VERSION >= (0, 0, 22):
        options["attention_layout"] = layout
    if VERSION >= (0, 0, 25):
        options["fuse_qkv"] = True
    if batch > 1 and continuous:
        options["continuous_batching"] = batch
        tokens, contexts = [total], [total]
    else:
        tokens = [2**power for power in range(7, 40) if 2**power < total] + [total]
        contexts = [length // 2 for length in tokens] if prompts else []
    kinds = [("token", length) for length in tokens]
    kinds += [("context", length) for length in contexts]
    if prompts == 2 and config.num_hidden_layers > 1:
        kinds += [("head", length) for length in contexts]
    asked = [
        block["num_cores"],
        block["auto_cast_type"].replace("p", ""),
        batch,
        options,
        [config.hidden_size, config.num_hidden_layers, config.vocab_size],
    ]
    texts = [json.dumps([kind, *asked], sort_keys=True) for kind in kinds]
    hashes = [hashlib.sha256(text.encode()).hexdigest()[:20] for text in texts]
    return SimpleNamespace(
        token_buckets=tokens,
        context_buckets=contexts,
        batch_sizes=[batch],
        hashes=hashes,
        neuron_config=SimpleNamespace(**options),
        environment=dict(os.environ),
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.partition("+")[0].split(".")]
