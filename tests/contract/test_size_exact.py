"""Predicted bytes of weights are the bytes that the quantize stage writes."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import pytest

import tiny_architectures
from bench.folder_facts import folder_facts
from lmi_build import registry
from lmi_build.catalog.architectures import find_architecture
from lmi_build.catalog.runtimes import runtimes
from lmi_build.checkpoint.formats.layout import checkpoint_plans, kv_cache_plans
from lmi_build.checkpoint.header import read_header
from lmi_build.plan.sizes import subject_of
from lmi_build.quantizers.builtin import PROVIDER, normal, worker_options
from lmi_build.quantizers.builtin_checks import check, linears_of
from lmi_build.sizing.memory import total, weight_lines
from lmi_build.sizing.weights import checkpoint_bytes
from lmi_build.values.recipe import CalibrationSpec, QuantSpec
from stage_jobs import quantize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Folders = Callable[[str], Path]

CALIBRATION = CalibrationSpec(num_samples=2, max_seq_len=32)
RTN = QuantSpec(method="rtn", bits=4, group_size=32)
# Every packing, with and without zero points, groups and whole rows, without data.
FREE = (
    RTN,
    replace(RTN, sym=False, format="gptq_v2"),
    replace(RTN, bits=8, group_size=-1, format="gptq"),
    replace(RTN, bits=2, sym=False),
    replace(RTN, bits=3, group_size=-1),
    replace(RTN, format="awq", sym=False),
    replace(RTN, format="compressed-tensors"),
    replace(RTN, format="compressed-tensors", sym=False),
    replace(RTN, format="compressed-tensors", bits=8, group_size=-1),
    QuantSpec(method="int8", bits=8),
    QuantSpec(method="int8", bits=8, group_size=32),
    QuantSpec(method="int8", bits=8, activations="dynamic"),
    QuantSpec(method="fp8", bits=8),
    QuantSpec(method="fp8", bits=8, granularity="tensor"),
    replace(RTN, ignore=("lm_head", "*.1.*")),
)
# What needs a forward pass, and the scales that it leaves.
CALIBRATED = (
    QuantSpec(method="gptq", bits=4, group_size=32, sym=False),
    QuantSpec(method="gptq", bits=3, group_size=-1),
    QuantSpec(method="awq", bits=4, group_size=32, sym=False),
    QuantSpec(method="smoothquant", bits=8),
    QuantSpec(method="smoothquant", bits=8, activations="static"),
    QuantSpec(method="int8", bits=8, kv_cache_dtype="int8"),
    QuantSpec(method="fp8", bits=8, activations="static", kv_cache_dtype="fp8"),
)
# Grouped and single key heads, fused projections, transposed and learned tables, tied
# heads, experts, biases.
NAMES = (
    "llama",
    "mixtral",
    "qwen2_moe",
    "qwen3",
    "gemma2",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
    "falcon",
    "starcoder2",
    "internlm2",
)
WALKED = ("llama", "qwen3_moe", "gpt2", "falcon-new")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Every tiny model, written once."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("models")
    numbers = dict(zip(tiny_architectures.MODELS, count(), strict=False))

    def find(name: str) -> Path:
        if not (root / name).exists():
            dtype = "bfloat16" if numbers[name] % 2 else "float32"
            tiny_architectures.make(name, root / name, dtype=dtype)
        return root / name

    return find


def written_bytes(folder: Path) -> int:
    """Bytes of all tensors of a folder, from the ranges of its files."""
    return sum(
        entry.end - entry.begin
        for path in folder.glob("*.safetensors")
        for entry in read_header(path).tensors.values()
    )


def predicted_bytes(folder: Path, spec: QuantSpec) -> int:
    """What sizing says of a model that was not quantized yet."""
    subject = subject_of(folder_facts(folder), spec, registry.quantizer)
    return checkpoint_bytes(subject.table, subject.scheme)


def takes(spec: QuantSpec, folder: Path) -> bool:
    """Whether the quantizer takes a model so; odd widths fill no word of some codes."""
    facts = folder_facts(folder)
    scheme = PROVIDER.scheme(spec, facts)
    calibrates = worker_options(spec).calibrates
    return not [*check(normal(spec), facts, scheme, calibrates=calibrates)]


@pytest.mark.parametrize("name", NAMES)
def test_a_written_checkpoint_has_the_predicted_bytes(
    name: str, folders: Folders, tmp_path: Path
) -> None:
    """Each packing that takes the model, really written by the quantizer."""
    model = folders(name)
    specs = [spec for spec in FREE if takes(spec, model)]
    found = {
        index: written_bytes(quantize(tmp_path / str(index), model, spec))
        for index, spec in enumerate(specs)
    }

    expected = {i: predicted_bytes(model, spec) for i, spec in enumerate(specs)}
    assert expected == found
    assert len(specs) >= len(FREE) - 3


@pytest.mark.parametrize("spec", CALIBRATED, ids=lambda spec: spec.method)
@pytest.mark.parametrize("name", WALKED)
def test_a_calibrated_checkpoint_has_the_predicted_bytes(
    name: str, spec: QuantSpec, folders: Folders, tmp_path: Path
) -> None:
    """Scales of inputs and of the cache, and what smoothing leaves, are counted."""
    model = folders(name)
    spec = replace(spec, calibration=CALIBRATION)
    out = quantize(tmp_path, model, spec)

    assert predicted_bytes(model, spec) == written_bytes(out)


@pytest.mark.parametrize("name", tiny_architectures.MODELS)
def test_the_table_says_what_the_layout_plans(name: str, folders: Folders) -> None:
    """On every architecture the sum of classes is the sum of planned tensors."""
    model = folders(name)
    facts = folder_facts(model)
    shapes = {fact.name: (fact.dtype, fact.shape) for fact in facts.tensors}
    for spec in (*FREE, *CALIBRATED):
        scheme = PROVIDER.scheme(spec, facts)
        architecture = find_architecture(facts.config, shapes)
        assert architecture is not None
        blocks = range(
            facts.geometry.num_layers if spec.kv_cache_dtype != "auto" else 0
        )
        extra = kv_cache_plans(architecture.attention(index) for index in blocks)
        plans = checkpoint_plans(shapes, linears_of(spec, facts), scheme, extra)

        assert predicted_bytes(model, spec) == sum(plan.num_bytes for plan in plans)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_hold_the_whole_and_what_they_repeat(name: str, folders: Folders) -> None:
    """One rank holds everything; more ranks hold no less together."""
    facts = folder_facts(folders(name))
    runtime = replace(runtimes()["vllm"], vocabulary_multiple=1, narrows=False)
    for spec in (QuantSpec(), *FREE):
        subject = subject_of(facts, spec, registry.quantizer)
        whole = total(weight_lines(subject, runtime, tp=1))

        assert whole.high == checkpoint_bytes(subject.table, subject.scheme)
        for tp in (2, 3, 6):
            each = total(weight_lines(subject, runtime, tp=tp))
            assert each.high * tp >= whole.high
            assert each.high < whole.high
