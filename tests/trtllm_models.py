"""Tiny models whose sizes two and four ranks divide, converted for TensorRT-LLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tiny_architectures
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.checkpoint_worker import checkpoint_params, run
from lmi_build.spi import Job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lmi_build.events import Event

VERSION = "0.16.0"
_SIZES = {"num_attention_heads": 8, "num_hidden_layers": 4, "vocab_size": 322}
_GPT2 = {"n_head": 8, "n_layer": 4, "vocab_size": 322}
# Grouped queries with fewer key heads than the most ranks, biases, tied and separate
# heads, a vocabulary that four ranks do not divide.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _SIZES),
    "llama31": (
        "llama",
        {
            **_SIZES,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": ("mistral", _SIZES),
    "mixtral": ("mixtral", {**_SIZES, "num_local_experts": 3}),
    "qwen2": ("qwen2", {**_SIZES, "num_key_value_heads": 2}),
    "gemma": ("gemma", {**_SIZES, "num_key_value_heads": 1, "vocab_size": 324}),
    "gpt2": ("gpt2", _GPT2),
    "opt": ("opt", _SIZES),
    "gpt_neox": ("gpt_neox", {**_SIZES, "intermediate_size": 384}),
}
# Their classes have no pipeline stages.
UNSTAGED = ("opt", "gpt_neox")


def make(name: str, folder: Path, dtype: str = "bfloat16", **changes: Any) -> Path:
    """
    Write a model of `MODELS` as a Hugging Face folder.

    Args:
        name: Which.
        folder: To be made.
        dtype: Of the weights.
        changes: Other sizes.
    """
    import torch

    base, options = MODELS[name]
    model = tiny_architectures.build(base, **{**options, **changes})
    model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def convert(
    source: Path,
    out: Path,
    *,
    dtype: str = "bfloat16",
    version: str = VERSION,
    tp: int = 1,
    pp: int = 1,
    emit: Callable[[Event], None] = lambda _: None,
    **params: Any,
) -> Path:
    """
    Run the worker.

    Args:
        source: Hugging Face folder.
        out: To be made.
        dtype: Of the checkpoint.
        version: Of TensorRT-LLM.
        tp: Ranks of each layer.
        pp: Pipeline stages.
        emit: Gets events.
        params: Further parameters of the stage.
    """
    out.mkdir(parents=True)
    mapping = Mapping2D(tp=tp, pp=pp)
    job = Job(
        stage="checkpoint",
        params={**checkpoint_params(version, dtype, mapping), **params},
        inputs={"checkpoint": source},
        out=out,
        state=out,
    )
    run(job, emit)
    return out
