"""Calls of Transformers NeuronX, and what is said about them, by release."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmi_build.backends.neuronx.tnx import explain_tnx, lower_tnx, tnx_findings
from lmi_build.backends.neuronx.tnx_problems import tnx_problems
from lmi_build.catalog.instances import instances
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.values.bounds import Bounds
from neuronx_sizes import ARCHITECTURES, llama

HERE = Path(__file__).parent / "neuronx-tnx-calls"
RELEASES = tuple(
    name for name, row in neuron_releases().items() if "tnx" in row.loaders
)
TRN1 = instances()["ml.trn1.32xlarge"]
ONE = Bounds(max_input_len=1000, max_output_len=24)
# Sizes of known models, and what is asked of them.
LLAMA2_13B: dict[str, Any] = {
    "num_layers": 40,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
MISTRAL_7B: dict[str, Any] = {
    "model_type": "mistral",
    "architecture": ARCHITECTURES["mistral"],
    "vocab_size": 32000,
}
GPT2_XL: dict[str, Any] = {
    "model_type": "gpt2",
    "architecture": ARCHITECTURES["gpt2"],
    "num_layers": 48,
    "hidden_size": 1600,
    "intermediate_size": 6400,
    "num_attention_heads": 25,
    "num_key_value_heads": 25,
    "head_dim": 64,
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
}
CASES: dict[str, dict[str, Any]] = {
    "Llama 2 13B": {"geometry": LLAMA2_13B, "tensor_parallel_size": 12},
    "Llama 2 13B in 8 bits": {
        "geometry": LLAMA2_13B,
        "tensor_parallel_size": 12,
        "int8": True,
    },
    "Llama 3.1 8B on 32 cores": {
        "geometry": {},
        "config": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}},
        "instance": TRN1,
        "tensor_parallel_size": 32,
    },
    "Mistral 7B, one request at a time": {
        "geometry": MISTRAL_7B,
        "instance": instances()["ml.inf2.8xlarge"],
        "tensor_parallel_size": 2,
        "bounds": replace(ONE, max_input_len=2000),
    },
    "GPT-2 XL, batched": {
        "geometry": GPT2_XL,
        "instance": TRN1,
        "tensor_parallel_size": 2,
        "bounds": replace(ONE, max_input_len=800, max_batch_size=4),
    },
    "own context buckets": {
        "geometry": LLAMA2_13B,
        "tensor_parallel_size": 12,
        "options": {"context_buckets": [256, 1024], "cc_flags": ["-O2"]},
    },
}


def release_text(release: str) -> str:
    """The call, its numbers and its findings for each case, or why there is none."""
    parts = []
    for title, changes in CASES.items():
        parts.append(f"== {title}")
        usual = {"config": {}, "release": neuron_releases()[release]}
        request = llama(**{**usual, **changes})
        refused = list(tnx_problems(request))
        parts += [f"refused: {p.code}: {p.message}\nhint: {p.hint}" for p in refused]
        if refused:
            continue
        document = lower_tnx(request).to_json()
        files = document.pop("files")
        assert isinstance(files, list)
        parts.append(json.dumps(document, indent=1, sort_keys=True))
        parts.append(f"{len(files)} files")
        parts += explain_tnx(request)
        parts += [f"note: {text}" for text in tnx_findings(request)]
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize("release", RELEASES)
def test_calls(release: str, *, update_golden: bool) -> None:
    """Every release, with and without rounding, batched in either way."""
    path = HERE / f"{release}.txt"
    text = release_text(release)
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")

    assert path.read_text("utf-8") == text
