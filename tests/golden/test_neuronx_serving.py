"""What each release is given to load graphs of Transformers NeuronX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.neuronx.layout import artifact_layout, neuron_block
from lmi_build.backends.neuronx.serving_keys import serving_problems, serving_properties
from lmi_build.backends.neuronx.startup import neuron_startup_everywhere
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.package.properties import render_properties
from neuron_folders import (
    LLAMA,
    TNX_RELEASES,
    folder_of,
    neuron_call,
    neuron_texts,
)

if TYPE_CHECKING:
    from lmi_build.catalog.neuron_releases import NeuronRelease

HERE = Path(__file__).parent / "neuronx-serving"
NEW, OLD = (
    neuron_releases()["djl-neuronx-0.30.0"],
    neuron_releases()["djl-neuronx-0.29.0"],
)
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


def folders() -> dict[str, dict[str, bytes]]:
    """Folders that people deploy, by what they are."""
    whole, split = neuron_texts(NEW), neuron_texts(OLD)
    large = neuron_texts(NEW, neuron_call(NEW, batch=16))
    auto = large["serving.properties"].replace(
        b"option.rolling_batch=tnx", b"option.rolling_batch=auto"
    )
    bare = b"engine=Python\noption.tensor_parallel_degree=2\n"
    hugging = {
        "config.json": json.dumps(LLAMA).encode(),
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
    }
    other = whole["serving.properties"].replace(
        b"option.max_rolling_batch_size=4", b"option.max_rolling_batch_size=8"
    )
    neffs = {path: data for path, data in whole.items() if ".neff" not in path}
    return {
        "weights split over the cores": whole,
        "weights in checkpoint/": split,
        "split weights, and the model's own at the root": {
            **whole,
            "model.safetensors": b"weights",
        },
        "split weights, no NEFFs": neffs,
        "split weights, another batch": {**whole, "serving.properties": other},
        "split weights, a batch of 16 left to the server": {
            **large,
            "serving.properties": auto,
        },
        "split weights, nothing but cores in the properties": {
            **whole,
            "serving.properties": bare,
        },
        "a model from the hub": {**hugging, "serving.properties": bare},
        "a model from the hub, all properties": {
            **hugging,
            "serving.properties": whole["serving.properties"],
        },
    }


def startup_text() -> str:
    """The verdict of every release on every folder."""
    lines = []
    for title, texts in folders().items():
        lines.append(f"== {title}")
        for row in neuron_startup_everywhere(folder_of(texts)):
            lines.append(f"{row.lmi} {row.outcome}: {row.reason}")
            if row.fix:
                lines.append(f"       {row.fix}")
            lines += [f"       note: {note}" for note in row.notes]
    return "\n".join(lines) + "\n"


def test_what_releases_do_at_start(*, update_golden: bool) -> None:
    """Folders that people deploy, before every Neuron image of LMI."""
    path, text = HERE / "startup.txt", startup_text()
    if update_golden:
        path.write_text(text, "utf-8")

    assert path.read_text("utf-8") == text
