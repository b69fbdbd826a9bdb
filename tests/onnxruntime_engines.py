"""Engines of tiny models, built as the executor would, for tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lmi_build.backends import onnxruntime_worker
from lmi_build.package.handlers import generation
from lmi_build.package.handlers import onnxruntime_genai as handler
from lmi_build.spi import Job
from make_tiny_model import ARCHITECTURES, make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from lmi_build.events import Event

BOUNDS = {
    "max_input_len": 24,
    "max_output_len": 16,
    "max_seq_len": 40,
    "max_batch_size": 2,
}
# Exact products in float32; an error beyond rounding would be a wrong weight.
EXACT = {"accuracy_level": 0, "lm_head_dtype": "float32"}
RELATIVE_ERROR = 2e-6


def compile_engine(
    checkpoint: Path, place: Path, **params: Any
) -> tuple[Path, list[Event]]:
    """Run the worker as the executor would; returns the engine and its events."""
    out, state = place / "engine", place / "state"
    out.mkdir(parents=True)
    state.mkdir()
    packing = "gptq" if checkpoint.name == "checkpoint" else "none"
    events: list[Event] = []
    job = Job(
        stage="t/compile",
        params={
            "accuracy_level": 4,
            "block_size": 32,
            "intra_op_num_threads": 1,
            "lm_head_block_size": 32,
            "lm_head_dtype": "int8",
            "max_seq_len": BOUNDS["max_seq_len"],
            "num_layers": 2,
            "qkv_accuracy_level": 1,
            "packing": packing,
            **params,
        },
        inputs={"checkpoint": checkpoint},
        out=out,
        state=state,
    )
    # The worker sets these for its own process; give them back.
    with pytest.MonkeyPatch.context() as patch:
        for name in onnxruntime_worker.OFFLINE:
            patch.setenv(name, "1")
        onnxruntime_worker.run(job, events.append)
    return out, events


def load_engine(engine: Path) -> handler.Engine:
    """The engine as the artifact's handler loads it."""
    settings = {"engine_dir": engine.name, "bounds": BOUNDS}
    (engine.parent / generation.SETTINGS_NAME).write_text(json.dumps(settings))
    return handler.Engine(engine.parent)


def reference(model: Path, dense: dict[str, Tensor] | None = None) -> Any:
    """The model in float32, with some layers replaced."""
    import torch
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    modules = dict(net.named_modules())
    for name, weight in (dense or {}).items():
        modules[name].weight.data = weight
    return net.eval()


def relative_error(net: Any, engine: handler.Engine, ids: Sequence[int]) -> float:
    """Largest difference of any logit, over the largest logit."""
    import torch

    with torch.inference_mode():
        wanted = net(torch.tensor([list(ids)])).logits[0].numpy()
    found = engine.logits(ids)

    assert wanted.shape == found.shape
    assert found.dtype == np.float32
    return float(np.abs(wanted - found).max() / np.abs(wanted).max())


def greedy(net: Any, ids: Sequence[int], count: int) -> list[int]:
    """What transformers answers, token by token."""
    import torch

    out = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            out.append(int(net(torch.tensor([out])).logits[0, -1].argmax()))
    return out[len(ids) :]


# What small models of each type need beside their sizes. Windows are shorter than the
# prompts of the tests, and widths have no whole root, so that both show.
SMALL: dict[str, dict[str, Any]] = {
    "ernie4_5": {},
    "gemma": {"hidden_size": 96},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 8, "hidden_size": 96},
    "gemma3_text": {
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "hidden_size": 96,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "granite": {
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.3,
        "logits_scaling": 2.0,
    },
    "hunyuan_v1_dense": {},
    "lfm2": {"layer_types": ["full_attention", "conv"], "full_attn_idxs": [0]},
    "llama": {},
    "mistral": {"sliding_window": 8},
    # Half of a head's channels are rotated, in eights.
    "nemotron": {"hidden_size": 128, "head_dim": 32},
    "olmo": {},
    "phi": {"hidden_size": 128, "head_dim": 32, "num_key_value_heads": 4},
    "phi3": {"original_max_position_embeddings": 512, "sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "smollm3": {},
}


def make_model(
    out: Path, architecture: str, extra: dict[str, Any] | None = None
) -> Path:
    """A small model; newer architectures are made by transformers itself."""
    if architecture in ARCHITECTURES and extra is None:
        return make_tiny_model(out, architecture=architecture)
    import torch
    import transformers

    make_tiny_model(out)
    sizes = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    config = transformers.AutoConfig.for_model(
        architecture, **{**sizes, **(extra or {})}
    )
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in net.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
        elif extra is not None:
            # Norms that do nothing would hide how they are computed.
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    (out / "model.safetensors").unlink()
    net.save_pretrained(out)
    return out
