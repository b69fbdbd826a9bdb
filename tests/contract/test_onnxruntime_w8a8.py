"""Engines of W8A8 checkpoints compute with the checkpoint's own integers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

from formats import quantize_folder_as, scheme
from lmi_build.events import StageNote
from make_tiny_model import make_tiny_model
from onnxruntime_engines import (
    compile_engine,
    load_engine,
    make_model,
    relative_error,
)
from onnxruntime_w8a8 import integer_reference

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.quant import QuantScheme

INTEGER = {"products": "integer", "lm_head_dtype": "float32"}
# What float32 adds to float64 where every code is the same.
ROUNDING = 5e-6
# A value within rounding of a half may become either of two codes, which moves the
# logits of a model this narrow by about a hundredth.
ONE_CODE = 0.04
NUM_PROMPTS = 6
W8A8 = scheme(
    "int-quantized",
    activation_bits=8,
    activation_dtype="int",
    activation_scheme="dynamic",
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with tied embeddings in bfloat16."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize(
    "form",
    [
        W8A8,
        replace(W8A8, granularity="tensor"),
        replace(W8A8, sym=False),
        replace(W8A8, activation_scheme="static"),
    ],
    ids=str,
)
def test_the_engine_multiplies_the_checkpoints_integers(
    tmp_path: Path, tiny: Path, form: QuantScheme
) -> None:
    """Logits are those of exact integer sums; dequantized products are far off."""
    checkpoint = tmp_path / "checkpoint"
    dense = quantize_folder_as(tiny, checkpoint, form, ignore=("1.mlp.down_proj",))
    out, events = compile_engine(checkpoint, tmp_path / "job", **INTEGER)
    net, count = integer_reference(tiny, checkpoint)
    engine = load_engine(out)

    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 500, 13).tolist() for _ in range(NUM_PROMPTS)]
    errors = sorted(relative_error(net, engine, ids) for ids in prompts)

    assert len(dense) == count == 13
    assert errors[NUM_PROMPTS * 2 // 3] < ROUNDING
    assert errors[-1] < ONE_CODE
    notes = [e.message for e in events if isinstance(e, StageNote)]
    assert any("as the checkpoint means" in note for note in notes)


def test_every_kind_of_projection_has_integer_products(tmp_path: Path) -> None:
    """Biases and fused projections stay; no block-quantized product is left."""
    import onnx

    model = make_model(tmp_path / "model", "qwen2")
    checkpoint = tmp_path / "checkpoint"
    quantize_folder_as(model, checkpoint, W8A8)
    out, _ = compile_engine(checkpoint, tmp_path / "job", **INTEGER)
    net, _ = integer_reference(model, checkpoint)
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    ids = [5, 17, 300, 42, 7, 9, 411]

    assert "MatMulNBits" not in kinds
    # Of a block: qkv, o, gate, up and down, of which gate and up share their inputs.
    assert kinds.count("MatMulIntegerToFloat") == 2 * 5
    assert kinds.count("QuantizeLinear") == 2 * 4
    assert relative_error(net, load_engine(out), ids) < ONE_CODE


def test_a_row_of_zeros_stays_one(tmp_path: Path, tiny: Path) -> None:
    """A token whose inputs are all zero has no step, and adds nothing."""
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][7] = 0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    checkpoint = tmp_path / "checkpoint"
    quantize_folder_as(model, checkpoint, W8A8)
    out, _ = compile_engine(checkpoint, tmp_path / "job", **INTEGER)
    net, _ = integer_reference(model, checkpoint)

    # Alone, so that the token's attention has nothing to add either.
    assert np.abs(load_engine(out).logits([7])).max() < ROUNDING
    assert relative_error(net, load_engine(out), [5, 7, 300]) < ONE_CODE


def test_a_cpu_without_vnni_is_asked_not_to_saturate(
    tmp_path: Path, tiny: Path
) -> None:
    """The engine's settings say it; an engine without such products has none."""
    found = []
    for name, params in (("integer", INTEGER), ("blocks", {})):
        checkpoint = tmp_path / name / "checkpoint"
        quantize_folder_as(tiny, checkpoint, W8A8)
        out, _ = compile_engine(checkpoint, tmp_path / name / "job", **params)
        config = json.loads((out / "genai_config.json").read_bytes())
        found.append(config["model"]["decoder"]["session_options"])

    assert found[0]["session.x64quantprecision"] == "1"
    assert "session.x64quantprecision" not in found[1]
