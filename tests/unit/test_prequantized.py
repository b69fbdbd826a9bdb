"""A model that came quantized is known by its configuration and headers alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from bench.folder_facts import folder_facts
from formats import quantize_folder_as, scheme
from lmi_build.errors import Problem, Unsupported
from lmi_build.sources.assemble import distil
from lmi_build.sources.prequantized import (
    dequantized_facts,
    describe,
    source_problems,
    source_scheme,
)
from lmi_build.values.quant import MODELOPT
from lmi_build.values.recipe import CalibrationSpec, QuantSpec
from make_tiny_model import make_tiny_model
from packed import sample_recipe
from tiny_models import hf_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lmi_build.digest import JSONValue
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme

SCHEMES = {
    "gptq": scheme("gptq"),
    "gptq-8": scheme("gptq", weight_bits=8, group_size=-1),
    "gptq_v2-3": scheme("gptq_v2", weight_bits=3),
    "awq": scheme("awq"),
    "pack-quantized": scheme("pack-quantized", scale_dtype="bfloat16"),
    "pack-quantized-asym": scheme("pack-quantized", sym=False),
    "int8-dynamic": scheme(
        "int-quantized",
        activation_bits=8,
        activation_dtype="int",
        activation_scheme="dynamic",
    ),
    "fp8-static": scheme(
        "float-quantized",
        activation_bits=8,
        activation_dtype="float",
        activation_scheme="static",
        granularity="tensor",
    ),
}
# One entry of modelopt's own export of a small Llama, 0.47.
MODELOPT_AWQ = {
    "quant_method": "modelopt",
    "quant_algo": "W4A16_AWQ",
    "ignore": ["lm_head"],
    "producer": {"name": "modelopt", "version": "0.47.0"},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def folders(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The model in each format, written once."""
    root = tmp_path_factory.mktemp("quantized")

    def find(name: str) -> Path:
        if not (root / name).exists():
            quantize_folder_as(tiny, root / name, SCHEMES[name])
        return root / name

    return find


def problems(
    facts: ModelFacts, quantize: QuantSpec | None = None
) -> tuple[Problem, ...]:
    """What is wrong with such a source."""
    return source_problems(sample_recipe(quantize=quantize or QuantSpec()), facts)


def with_config(facts: ModelFacts, **changes: Any) -> ModelFacts:
    """Facts whose `quantization_config` says something else."""
    entry: Mapping[str, Any] = facts.config["quantization_config"]  # type: ignore[assignment]
    config = {**facts.config, "quantization_config": {**entry, **changes}}
    return replace(facts, config=config)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_format_is_known_and_whole(
    name: str, folders: Callable[[str], Path]
) -> None:
    """The scheme is what was written, and headers agree with it."""
    facts = folder_facts(folders(name))

    assert source_scheme(facts) == SCHEMES[name]
    assert problems(facts) == ()


def test_a_float_model_has_neither_scheme_nor_problems(tiny: Path) -> None:
    """Nothing is made up."""
    facts = folder_facts(tiny)

    assert source_scheme(facts) is None
    assert problems(facts, QuantSpec(method="rtn", bits=4, group_size=32)) == ()


def test_a_method_on_a_quantized_model_is_refused(
    folders: Callable[[str], Path],
) -> None:
    """Codes are not rounded again; the message says what the model is."""
    spec = QuantSpec(method="gptq", bits=4, calibration=CalibrationSpec())
    (problem,) = problems(folder_facts(folders("gptq")), spec)

    assert problem.code == "quantize.already-quantized"
    assert problem.path == "quantize.method"
    assert "gptq, 4 bits, group_size 32" in problem.message
    assert "convert" in problem.hint


@pytest.mark.parametrize(
    ("name", "changes", "part"),
    [
        ("gptq", {"bits": 8}, "bits"),
        ("gptq", {"group_size": 16}, "means int32 [8, 8]"),
        ("gptq", {"group_size": -1}, "means"),
        ("awq", {"group_size": 64}, "`group_size: 64`"),
    ],
    ids=str,
)
def test_a_configuration_of_other_weights_is_refused(
    name: str, changes: dict[str, Any], part: str, folders: Callable[[str], Path]
) -> None:
    """Bits, groups and formats that the headers contradict."""
    (problem,) = problems(with_config(folder_facts(folders(name)), **changes))

    assert problem.path == "model.source"
    assert problem.code == "checkpoint.format"
    assert part in problem.message


def test_another_tools_configuration_is_refused(
    folders: Callable[[str], Path],
) -> None:
    """None of its tensors are there."""
    facts = folder_facts(folders("fp8-static"))
    entry: dict[str, JSONValue] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "version": "gemm",
    }
    other = replace(facts, config={**facts.config, "quantization_config": entry})

    (problem,) = problems(other)

    assert problem.code == "checkpoint.format"
    assert "no tensor `*.qweight`" in problem.message


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gptq", "layers.1.mlp.up_proj.scales"),
        ("gptq", "layers.0.self_attn.q_proj.qzeros"),
        ("pack-quantized", "layers.0.mlp.down_proj.weight_shape"),
        ("pack-quantized-asym", "layers.0.mlp.down_proj.weight_zero_point"),
        ("fp8-static", "layers.1.self_attn.o_proj.input_scale"),
    ],
)
def test_a_missing_tensor_is_named(
    name: str, tensor: str, folders: Callable[[str], Path]
) -> None:
    """Scales and their companions must be there."""
    facts = folder_facts(folders(name))
    kept = tuple(x for x in facts.tensors if not x.name.endswith(tensor))
    assert len(kept) == len(facts.tensors) - 1

    (problem,) = problems(replace(facts, tensors=kept))

    module, _, part = tensor.rpartition(".")
    assert problem.code == "checkpoint.format"
    assert f"{module}` has no tensor `{part}`" in problem.message


def test_a_group_index_may_be_missing_unless_it_is_needed(
    folders: Callable[[str], Path],
) -> None:
    """Readers make up the plain one; activation order cannot be made up."""
    facts = folder_facts(folders("gptq"))
    kept = tuple(x for x in facts.tensors if not x.name.endswith("g_idx"))
    bare = replace(facts, tensors=kept)

    assert problems(bare) == ()
    (problem,) = problems(with_config(bare, desc_act=True, static_groups=False))
    assert "g_idx" in problem.message


@pytest.mark.parametrize(
    "entry",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 5, "group_size": 32},
        {"quant_method": "gptq", "bits": "four", "group_size": 32},
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"},
        {"quant_method": "compressed-tensors", "config_groups": {}},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": "x"},
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": "NVFP4"},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "gptq",
    ],
    ids=str,
)
def test_what_nobody_reads_is_refused_before_a_weight(entry: Any, tiny: Path) -> None:
    """With the entry that is in the way, as something that is not supported."""
    facts = folder_facts(tiny)
    facts = replace(facts, config={**facts.config, "quantization_config": entry})

    (problem,) = problems(facts)

    assert (problem.code, problem.unsupported) == ("checkpoint.scheme", True)
    assert problem.path == "model.source"
    assert problem.hint
    with pytest.raises(Unsupported):
        source_scheme(facts)


def modelopt_model(tiny: Path, folder: Path, entry: dict[str, Any]) -> ModelFacts:
    """The float model's linears as modelopt's 4-bit bytes, of some numbers."""
    folder.mkdir()
    tensors = {}
    for name, tensor in load_file(tiny / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        num_outputs, num_inputs = tensor.shape
        base = name.removesuffix("weight")
        codes = torch.zeros(num_outputs // 2, num_inputs, dtype=torch.uint8)
        tensors[name] = codes
        tensors[f"{base}weight_scale"] = torch.ones(num_outputs, num_inputs // 32)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((tiny / "config.json").read_bytes())
    config["quantization_config"] = entry
    (folder / "config.json").write_text(json.dumps(config))
    return folder_facts(folder)


def test_modelopts_four_bits_are_passed_on(tiny: Path, tmp_path: Path) -> None:
    """They are known and checked, under a packing that only one backend reads."""
    facts = modelopt_model(tiny, tmp_path / "awq", {**MODELOPT_AWQ, "group_size": 32})
    found = source_scheme(facts)

    assert found is not None
    assert (found.packing, found.weight_bits, found.group_size) == (MODELOPT, 4, 32)
    assert found.scale_dtype == "float32"
    assert problems(facts) == ()
    (problem,) = problems(with_config(facts, group_size=64))
    assert "weight_scale` is float32 [" in problem.message


def test_modelopts_own_file_says_what_config_json_does_not() -> None:
    """Its releases before 0.29 wrote `hf_quant_config.json` alone."""
    document = {
        "producer": {"name": "modelopt", "version": "0.27.0"},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head"],
        },
    }
    files = {**hf_files(), "hf_quant_config.json": json.dumps(document).encode()}
    config = distil(_Files(files))["config"]
    taken = distil(_Files(files))["others"]

    assert config["quantization_config"]["quant_method"] == "modelopt"
    assert config["quantization_config"]["quant_algo"] == "FP8"
    assert "hf_quant_config.json" in taken
    assert "quantization_config" not in distil(_Files(hf_files()))["config"]


class _Files:
    """A folder in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self.source = "memory"
        self.sizes = {name: len(data) for name, data in files.items()}

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        """Bytes of a file."""
        return self._files[name][offset : offset + count]


@pytest.mark.parametrize("name", SCHEMES)
def test_the_float_model_behind_it_has_the_float_models_shapes(
    name: str, tiny: Path, folders: Callable[[str], Path]
) -> None:
    """Whoever estimates by tensors sees the model that the codes stand for."""
    facts = folder_facts(folders(name))
    found = dequantized_facts(facts, SCHEMES[name])

    shapes = {x.name: x.shape for x in folder_facts(tiny).tensors}
    assert {x.name: x.shape for x in found.tensors} == shapes
    assert "quantization_config" not in found.config
    assert (found.dtype, found.files) == ("float32", facts.files)


def test_a_scheme_in_words() -> None:
    """Only what differs from the plain case is said."""
    form: QuantScheme = SCHEMES["fp8-static"]

    assert describe(form) == "float-quantized, 8 bits, static activations"
    assert (
        describe(replace(SCHEMES["gptq"], act_order=True, kv_cache_dtype="fp8"))
        == "gptq, 4 bits, group_size 32, activation order, fp8 cache"
    )
