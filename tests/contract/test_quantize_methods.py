"""Every method on every architecture: what is written is still the model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny_architectures
from bench.folder_facts import folder_facts
from lmi_build.checkpoint.ledger import read_ledger
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.events import ignore
from lmi_build.quantizers import builtin_worker
from lmi_build.quantizers.builtin import PROVIDER
from lmi_build.values.recipe import CalibrationSpec, QuantSpec
from stage_jobs import quantize, quantize_job, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    Folders = Callable[[str], Path]

CALIBRATION = CalibrationSpec(num_samples=6, max_seq_len=96)
SMOOTH = QuantSpec(method="smoothquant", calibration=CALIBRATION)
FOUR = QuantSpec(
    method="gptq", bits=4, group_size=32, sym=False, calibration=CALIBRATION
)
AWQ = replace(FOUR, method="awq")
# InternLM2's own code is not in transformers; its walk is tested with the decoder.
LOADABLE = [name for name in tiny_architectures.MODELS if name != "internlm2"]
DENSE = ["llama", "gemma2", "olmo2", "gpt2", "qwen3_moe"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Every tiny model, written once."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        if not (root / name).exists():
            tiny_architectures.make(name, root / name)
        return root / name

    return find


@cache
def expected_logits(folder: Path) -> Tensor:
    """`logits` of a model that stays as it is."""
    return logits(folder)


def logits(folder: Path) -> Tensor:
    """What a model says to some tokens, in float32."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, tiny_architectures.VOCAB_SIZE, (2, 64), generator=generator)
    with torch.inference_mode():
        result: Tensor = model(ids).logits
    return result


def drift(root: Path, model: Path, spec: QuantSpec) -> float:
    """
    Relative error of a quantized model's logits, the median over tokens.

    Not the mean: a router of random weights sends some tokens elsewhere at the
    slightest change, and those say nothing about the weights.
    """
    out = quantize(root, model, spec)
    expected = expected_logits(model)
    found = logits(unpacked(out, model, root / "float"))
    centred = expected - expected.mean(dim=-1, keepdim=True)
    error = (found - expected).norm(dim=-1) / centred.norm(dim=-1)
    return float(error.median())


@pytest.mark.parametrize("name", LOADABLE)
def test_smoothing_and_8_bits_leave_the_model_as_it_is(
    name: str, folders: Folders, tmp_path: Path
) -> None:
    """
    Scales folded into norms, fused rows, grouped heads and experts cancel out.

    Rounding rows to 8 bits changes logits of these models by 1 to 3 percent; one scale
    in a wrong place changes them by more than ten times that.
    """
    assert drift(tmp_path, folders(name), SMOOTH) < 0.08


@pytest.mark.parametrize("spec", [FOUR, AWQ, replace(AWQ, then_gptq=True)])
@pytest.mark.parametrize("name", LOADABLE)
def test_four_bits_stay_close(
    name: str, spec: QuantSpec, folders: Folders, tmp_path: Path
) -> None:
    """Rounding random weights to 4 bits costs some ten percent, not the model."""
    assert drift(tmp_path, folders(name), spec) < 0.45


def test_every_tensor_has_its_row(folders: Folders, tmp_path: Path) -> None:
    """What absorbed a scale says so; what was quantized has an error and its tokens."""
    model = folders("llama")
    out = quantize(tmp_path, model, AWQ)
    rows = {row.source: row for row in read_ledger(out)}
    with CheckpointReader(model) as reader:
        assert set(rows) == set(reader.tensors)

    actions = {name: row.action for name, row in rows.items()}
    assert actions["model.layers.0.input_layernorm.weight"] == "smoothed"
    assert actions["model.layers.0.self_attn.v_proj.bias"] == "smoothed"
    assert actions["model.layers.0.self_attn.q_proj.bias"] == "copied"
    assert actions["model.embed_tokens.weight"] == "copied"
    quantized = [row for row in rows.values() if row.action == "quantized"]
    assert all(row.tokens == 6 * 96 for row in quantized)
    assert all(row.error is not None and 0 < row.error < 0.1 for row in quantized)


def test_layers_that_stay_in_float_are_smoothed_with_the_others(
    folders: Folders, tmp_path: Path
) -> None:
    """An ignored reader of a smoothed input, or producer of one, is rescaled too."""
    ignore = ("lm_head", "*.k_proj", "*.up_proj", "*.v_proj")
    spec = replace(SMOOTH, ignore=ignore)
    assert drift(tmp_path, folders("llama"), spec) < 0.08

    actions = {row.source: row.action for row in read_ledger(tmp_path / "out")}
    for part in ("self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"):
        assert actions[f"model.layers.1.{part}.weight"] == "smoothed"


@pytest.mark.parametrize("spec", [SMOOTH, AWQ, FOUR])
@pytest.mark.parametrize("name", DENSE)
def test_activations_on_disk_change_no_byte(
    name: str, spec: QuantSpec, folders: Folders, tmp_path: Path
) -> None:
    """A budget too small for the activations gives the same checkpoint."""
    model = folders(name)
    need = PROVIDER.estimate(spec, folder_facts(model)).ram_bytes
    held = quantize(tmp_path / "held", model, spec, memory_bytes=need)
    spilled = quantize(tmp_path / "spilled", model, spec, memory_bytes=need - 1)

    assert not (tmp_path / "held" / "state" / "spilled").exists()
    assert (tmp_path / "spilled" / "state" / "spilled" / "residual.bin").exists()
    for path in sorted(held.iterdir()):
        assert (spilled / path.name).read_bytes() == path.read_bytes(), path.name


def test_one_pass_per_block_is_another_result_and_still_the_model(
    folders: Folders, tmp_path: Path
) -> None:
    """`true_sequential: false` calibrates a block on its own float outputs."""
    model = folders("llama")
    plain = quantize(tmp_path / "a", model, FOUR)
    spec = replace(FOUR, true_sequential=False)

    assert drift(tmp_path / "b", model, spec) < 0.45
    weights = "model.safetensors"
    assert (plain / weights).read_bytes() != (
        tmp_path / "b" / "out" / weights
    ).read_bytes()


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_cache_scales_cover_what_was_seen(
    dtype: str, folders: Folders, tmp_path: Path
) -> None:
    """One positive scale for keys and one for values, beside every attention."""
    spec = replace(SMOOTH, kv_cache_dtype=dtype)
    out = quantize(tmp_path, folders("llama"), spec)
    with CheckpointReader(out) as reader:
        found = {
            name: float(reader.read(name))
            for name in reader.tensors
            if name.endswith(("k_scale", "v_scale"))
        }

    assert len(found) == 2 * tiny_architectures.NUM_LAYERS
    assert set(found) >= {"model.layers.0.self_attn.k_scale"}
    steps = 127 if dtype == "int8" else 448
    # Keys and values of these models reach from 1 to 100.
    assert all(1 < value * steps < 100 for value in found.values())


def test_static_activations_have_one_scale_a_layer(
    folders: Folders, tmp_path: Path
) -> None:
    """Linears that share an input share its scale."""
    for method in ("smoothquant", "int8", "fp8"):
        spec = replace(SMOOTH, method=method, activations="static")
        out = quantize(tmp_path / method, folders("llama"), spec)
        with CheckpointReader(out) as reader:
            scales = {
                name.removesuffix(".input_scale"): float(reader.read(name))
                for name in reader.tensors
                if name.endswith("input_scale")
            }
        block = "model.layers.0"
        assert len(scales) == 7 * tiny_architectures.NUM_LAYERS
        assert all(scale > 0 for scale in scales.values())
        query, key = f"{block}.self_attn.q_proj", f"{block}.self_attn.k_proj"
        assert scales[query] == scales[key]
        assert scales[query] != scales[f"{block}.mlp.down_proj"]


@pytest.mark.parametrize("method", ["rtn", "int8", "fp8"])
def test_threads_change_no_byte_of_what_looks_at_weights_alone(
    method: str, folders: Folders, tmp_path: Path
) -> None:
    """So their keys have no number of threads."""
    spec = QuantSpec(method=method, bits=4, group_size=-1 if method == "fp8" else 32)
    one = quantize(tmp_path / "one", folders("llama"), spec, threads=1)
    two = quantize(tmp_path / "two", folders("llama"), spec, threads=2)

    assert method not in PROVIDER.info.threaded_methods
    for path in sorted(one.iterdir()):
        assert (two / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("spec", [SMOOTH, AWQ, FOUR])
def test_as_many_threads_as_the_key_says_give_the_same_bytes(
    spec: QuantSpec, folders: Folders, tmp_path: Path
) -> None:
    """The planner's number goes before the machine's, and repeats to the byte."""
    assert spec.method in PROVIDER.info.threaded_methods
    model = folders("mistral")
    runs = []
    for name, threads in (("a", 1), ("b", 2)):
        job = quantize_job(tmp_path / name, model, spec, threads=threads)
        builtin_worker.run(replace(job, params={**job.params, "threads": 2}), ignore)
        runs.append({p.name: p.read_bytes() for p in sorted(job.out.iterdir())})

    assert runs[0] == runs[1]


def test_every_method_that_calibrates_by_itself_counts_threads() -> None:
    """A new method cannot forget to say whether its sums hang on threads."""
    free = {"rtn", "int8", "fp8"}
    assert set(PROVIDER.info.threaded_methods) == set(PROVIDER.info.methods) - free
