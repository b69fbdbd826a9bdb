"""Engines built from small models say what the checkpoint says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

from autogptq import quantize_folder
from formats import quantize_folder_as, scheme
from lmi_build.backends import onnxruntime_worker
from lmi_build.backends.onnxruntime_target import HALF_ERROR
from lmi_build.digest import digest_file
from lmi_build.events import StageNote, StageProgress
from make_tiny_model import make_tiny_model
from onnxruntime_engines import (
    EXACT,
    RELATIVE_ERROR,
    compile_engine,
    greedy,
    load_engine,
    reference,
    relative_error,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.quant import QuantScheme

IDS = [5, 17, 300, 42, 7, 9, 411, 23, 250, 99, 12, 3, 77]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with tied embeddings in bfloat16."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_float_engine_is_the_model(
    tmp_path: Path, *, architecture: str, tied: bool
) -> None:
    """Logits agree to rounding, greedy tokens are the same."""
    model = make_tiny_model(
        tmp_path / "model", architecture=architecture, tie_word_embeddings=tied
    )
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    net, engine = reference(model), load_engine(out)

    assert relative_error(net, engine, IDS) < RELATIVE_ERROR
    steps = list(engine.stream(IDS, {"max_new_tokens": 12}))
    assert greedy(net, IDS, len(steps)) == [step.token_id for step in steps]


@pytest.mark.parametrize(
    "scheme",
    [
        {"group_size": 32},
        {"group_size": 64, "sym": False},
        {"group_size": 16},
        {"group_size": -1},
        {"group_size": 32, "act_order": True},
        {"bits": 8, "group_size": -1},
        {"bits": 8, "group_size": 32, "sym": False, "act_order": True},
        {"ignore": ("layers.0.self_attn.k_proj", "layers.1.mlp.down_proj")},
        {"ignore": ("layers.0.self_attn.q_proj", "k_proj", "v_proj")},
    ],
    ids=str,
)
def test_a_quantized_checkpoint_is_taken_exactly(
    tmp_path: Path, tiny: Path, scheme: dict[str, Any]
) -> None:
    """The engine computes with the values that the checkpoint dequantizes to."""
    dense = quantize_folder(tiny, tmp_path / "checkpoint", **scheme)
    out, _ = compile_engine(tmp_path / "checkpoint", tmp_path / "job", **EXACT)

    error = relative_error(reference(tiny, dense), load_engine(out), IDS)
    assert error < RELATIVE_ERROR


W8A8 = scheme(
    "int-quantized",
    activation_bits=8,
    activation_dtype="int",
    activation_scheme="dynamic",
)


@pytest.mark.parametrize(
    "form",
    [
        scheme("gptq_v2", sym=False),
        scheme("gptq_v2", weight_bits=8, group_size=-1),
        scheme("awq"),
        scheme("awq", group_size=64, sym=True),
        scheme("pack-quantized"),
        scheme("pack-quantized", sym=False, scale_dtype="bfloat16"),
        scheme("pack-quantized", weight_bits=8, group_size=-1, sym=False),
        W8A8,
        replace(W8A8, activation_scheme="static", kv_cache_dtype="int8"),
        scheme("int-quantized", granularity="tensor"),
        scheme("int-quantized", sym=False, group_size=32),
        scheme("float-quantized"),
        scheme("float-quantized", granularity="tensor", scale_dtype="float32"),
    ],
    ids=str,
)
def test_every_format_is_taken_exactly(
    tmp_path: Path, tiny: Path, form: QuantScheme
) -> None:
    """Codes, scales and zero points of any format are what the engine computes with."""
    checkpoint = tmp_path / "checkpoint"
    dense = quantize_folder_as(tiny, checkpoint, form, ignore=("1.mlp.down_proj",))
    out, _ = compile_engine(checkpoint, tmp_path / "job", **EXACT)

    assert len(dense) == 13
    error = relative_error(reference(tiny, dense), load_engine(out), IDS)
    assert error < RELATIVE_ERROR


def test_what_the_engine_computes_otherwise_is_noted(
    tmp_path: Path, tiny: Path
) -> None:
    """8-bit activations, the cache's scales and fp8 weights are spoken of."""
    found = {}
    for name, form in {
        "int": replace(W8A8, kv_cache_dtype="fp8"),
        "float": scheme("float-quantized"),
    }.items():
        checkpoint = tmp_path / name / "checkpoint"
        quantize_folder_as(tiny, checkpoint, form)
        if name == "int":
            _add_cache_scales(checkpoint)
        _, events = compile_engine(checkpoint, tmp_path / name / "job")
        found[name] = {e.code: e.message for e in events if isinstance(e, StageNote)}

    assert "in blocks of at most 32 channels" in found["int"]["compile.activations"]
    assert "its scales are not used" in found["int"]["compile.kv-cache"]
    assert "stored as float32" in found["float"]["compile.float8"]


def _add_cache_scales(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    for index in range(2):
        for part in ("k_scale", "v_scale"):
            name = f"model.layers.{index}.self_attn.{part}"
            tensors[name] = torch.tensor([0.5])
    save_file(tensors, path)


def test_the_weights_in_the_file_are_the_checkpoints(
    tmp_path: Path, tiny: Path
) -> None:
    """Read back from the engine's bytes, every integer and scale is the same."""
    import onnx
    from onnx import numpy_helper

    dense = quantize_folder(tiny, tmp_path / "checkpoint", group_size=64)
    out, _ = compile_engine(tmp_path / "checkpoint", tmp_path / "job")
    model = onnx.load(out / "model.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for index in range(2):
        name = f"model.layers.{index}.mlp.down_proj"
        blocks = tensors[f"{name}.MatMulNBits.qweight"]
        scales = tensors[f"{name}.MatMulNBits.scales"].reshape(64, -1, 1)
        levels = np.stack((blocks & 0xF, blocks >> 4), -1).reshape(64, -1, 32)
        found = ((levels.astype(np.float32) - 8) * scales).reshape(64, 128)

        assert np.array_equal(dense[name].numpy(), found)


def test_the_embedding_is_kept_in_16_bits_when_that_is_exact(
    tmp_path: Path, tiny: Path
) -> None:
    """A bfloat16 table stays one; a float32 one that would change does not."""
    import onnx

    wide = make_tiny_model(tmp_path / "wide", dtype="float32")
    found = []
    for name, model in (("narrow", tiny), ("wide", wide)):
        out, _ = compile_engine(model, tmp_path / name, **EXACT)
        graph = onnx.load(out / "model.onnx", load_external_data=False).graph
        found += [t for t in graph.initializer if t.name.startswith("model.embed")]

    assert [t.data_type for t in found] == [
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.FLOAT,
    ]


def test_two_builds_give_the_same_bytes(tmp_path: Path, tiny: Path) -> None:
    """The engine is a function of checkpoint and parameters, not of place or time."""
    quantize_folder(tiny, tmp_path / "checkpoint")
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "elsewhere" / "checkpoint")
    digests = []
    for place in (tmp_path, tmp_path / "elsewhere"):
        out, _ = compile_engine(place / "checkpoint", place / "job")
        digests.append({p.name: digest_file(p) for p in sorted(out.iterdir())})

    assert digests[0] == digests[1]
    assert set(onnxruntime_worker.ENGINE_FILES) <= set(digests[0])


def test_bounds_stand_in_the_configuration(tmp_path: Path, tiny: Path) -> None:
    """No longer sequence than the recipe's can be held, with one beam."""
    out, _ = compile_engine(tiny, tmp_path / "job", intra_op_num_threads=3)
    config = json.loads((out / "genai_config.json").read_bytes())

    assert config["model"]["context_length"] == 40
    assert config["search"]["max_length"] == 40
    assert config["search"]["num_beams"] == 1
    assert config["search"]["past_present_share_buffer"] is True
    session = config["model"]["decoder"]["session_options"]
    assert session["intra_op_num_threads"] == 3


def test_an_int8_head_is_close_and_recorded(tmp_path: Path, tiny: Path) -> None:
    """The 8-bit head changes logits by less than one percent; float does not."""
    net = reference(tiny)
    out, _ = compile_engine(tiny, tmp_path / "int8", lm_head_dtype="int8")
    error = relative_error(net, load_engine(out), IDS)

    assert RELATIVE_ERROR < error < 0.02


def test_progress_counts_layers(tmp_path: Path, tiny: Path) -> None:
    """Each decoder block is reported once, with the known total."""
    _, events = compile_engine(tiny, tmp_path / "job")
    progress = [event for event in events if isinstance(event, StageProgress)]

    assert [(event.done, event.total) for event in progress] == [(1, 2), (2, 2)]
    assert {event.unit for event in progress} == {"layers"}


def test_an_act_order_checkpoint_is_noted(tmp_path: Path, tiny: Path) -> None:
    """Reordered inputs cost time while serving, so the user hears of them."""
    quantize_folder(tiny, tmp_path / "checkpoint", act_order=True)
    _, events = compile_engine(tmp_path / "checkpoint", tmp_path / "job")
    notes = [event.code for event in events if isinstance(event, StageNote)]

    assert "compile.activation-order" in notes


@pytest.mark.parametrize("packed", [True, False])
def test_an_engine_for_cuda_is_the_model_in_float16(
    tmp_path: Path, tiny: Path, *, packed: bool
) -> None:
    """Tried by ONNX Runtime's CPU kernels where there is no GPU: the same graph."""
    import onnx

    dense = quantize_folder(tiny, tmp_path / "checkpoint") if packed else None
    model = tmp_path / "checkpoint" if packed else tiny
    out, events = compile_engine(model, tmp_path / "job", **EXACT, provider="cuda")
    config = json.loads((out / "genai_config.json").read_bytes())
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    options = config["model"]["decoder"]["session_options"]["provider_options"]

    assert [list(option) for option in options] == [["cuda"]]
    assert onnx.TensorProto.FLOAT not in kinds
    assert "compile.float16" in {e.code for e in events if isinstance(e, StageNote)}
    error = relative_error(reference(tiny, dense), load_engine(out), IDS)
    assert RELATIVE_ERROR < error < HALF_ERROR
