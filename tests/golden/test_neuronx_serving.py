"""What each release is given to load graphs of Transformers NeuronX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.neuronx.layout import artifact_layout, neuron_block
from lmi_build.backends.neuronx.serving_keys import serving_problems, serving_properties
from lmi_build.package.properties import render_properties
from neuron_folders import LLAMA, TNX_RELEASES, neuron_call

if TYPE_CHECKING:
    from lmi_build.catalog.neuron_releases import NeuronRelease

HERE = Path(__file__).parent / "neuronx-serving"
GPT2 = {**LLAMA, "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
# What people ask for, and the model that they ask it of.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float16": ({}, LLAMA),
    "bfloat16 int8": ({"amp": "bf16", "int8": True, "tp": 24}, LLAMA),
    "three context lengths": ({"context": (128, 512, 1024)}, LLAMA),
    "one request at a time": ({"batch": 1, "continuous": False}, LLAMA),
    "grouped heads, fused": (
        {"options": {"group_query_attention": "replicated-heads", "fuse_qkv": True}},
        LLAMA,
    ),
    "an option that is never passed": (
        {"options": {"sequence_parallel_norm": True}},
        LLAMA,
    ),
    "gpt2": ({"continuous": False, "model_type": "gpt2"}, GPT2),
}


def release_text(release: NeuronRelease) -> str:
    """Files and properties of one release, for each case."""
    layout = artifact_layout(release, num_layers=2)
    parts = [f"tokenizer in {layout.tokenizer_dir}"]
    parts += [f"file {path}" for path in layout.files]
    block = neuron_block(release, neuron_call(release).arguments)
    parts += [f"neuron {name} {value}" for name, value in sorted(block.items())]
    for title, (changes, config) in CASES.items():
        parts.append(f"== {title}")
        call = neuron_call(release, **changes)
        if problems := list(serving_problems(release, call, config)):
            parts += [f"refused: {p.code}: {p.message}" for p in problems]
            parts += [f"hint: {p.hint}" for p in problems]
            continue
        entries = serving_properties(release, call, config)
        parts.append(render_properties(entries).decode().rstrip())
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize("release", TNX_RELEASES, ids=lambda row: row.version)
def test_serving(release: NeuronRelease, *, update_golden: bool) -> None:
    """Every release, with and without quantization."""
    path = HERE / f"{release.version}.txt"
    text = release_text(release)
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")

    assert path.read_text("utf-8") == text
