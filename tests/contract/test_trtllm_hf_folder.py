"""Folders for TensorRT-LLM's PyTorch backend, read back by the format alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from bench.folder_facts import folder_facts
from formats import quantize_folder_as, scheme
from lmi_build.backends.trtllm import hf_quantized_worker
from lmi_build.backends.trtllm.backend import PROVIDER
from lmi_build.backends.trtllm.hf_quantized import hf_quantized_params
from lmi_build.backends.trtllm.int4_layout import pack_outputs
from lmi_build.checkpoint.header import read_header
from lmi_build.checkpoint.ledger import check_total, read_ledger
from lmi_build.errors import SourceInvalid, StageFailed, Unsupported
from lmi_build.events import StageNote
from lmi_build.quantizers.builtin import PROVIDER as BUILTIN
from lmi_build.sources.prequantized import source_scheme
from lmi_build.spi import Job
from lmi_build.values.quant import MODELOPT
from lmi_build.values.recipe import CompileSpec, QuantSpec
from make_tiny_model import make_tiny_model
from packed import sample_recipe
from stage_jobs import quantize

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lmi_build.events import Event
    from lmi_build.values.quant import QuantScheme

W4 = {"group_size": 64}
STATIC = {
    "activation_bits": 8,
    "activation_dtype": "float",
    "activation_scheme": "static",
}
FORMS = {
    "gptq": scheme("gptq", **W4),
    "gptq_v2": scheme("gptq_v2", **W4),
    "awq": scheme("awq", sym=True, **W4),
    "pack-quantized": scheme("pack-quantized", scale_dtype="bfloat16", **W4),
    "gptq-8": scheme("gptq", weight_bits=8, group_size=-1),
    "int8": scheme("int-quantized"),
    "fp8": scheme("float-quantized", granularity="tensor", **STATIC),
    "fp8-rows": scheme("float-quantized", **{**STATIC, "activation_scheme": "dynamic"}),
}
# Signed numbers [O, I] and the bytes that `pack_int4_in_uint8` of nvidia-modelopt 0.47
# makes of them with scales of one.
NUMBERS = [[-8, 7, 0], [1, -1, 5], [2, -3, -7], [-6, 4, 3]]
MODELOPT_BYTES = [[24, 247, 80], [162, 77, 57]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose widths have kernels, with a head of its own, in float16."""
    return make_tiny_model(
        tmp_path_factory.mktemp("tiny") / "model",
        num_key_value_heads=4,
        tie_word_embeddings=False,
        dtype="float16",
    )


def run(checkpoint: Path, place: Path, form: QuantScheme) -> tuple[Path, list[Event]]:
    """The stage, as the executor would run it."""
    out = place / "out"
    out.mkdir(parents=True)
    events: list[Event] = []
    job = Job(
        stage="t/checkpoint",
        params=hf_quantized_params(form),
        inputs={"checkpoint": checkpoint},
        out=out,
        state=place / "state",
    )
    hf_quantized_worker.run(job, events.append)
    return out, events


def notes(events: list[Event]) -> set[str]:
    """Codes of what was said."""
    return {event.code for event in events if isinstance(event, StageNote)}


def read_back(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """
    Every quantized linear as floats, by the description of the format alone.

    Returns:
        Module name to float32 [O, I]; and all other tensors.
    """
    algo = json.loads((folder / "hf_quant_config.json").read_bytes())["quantization"]
    tensors = load_file(folder / "model.safetensors")
    dense, rest = {}, {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        scale = tensors.get(f"{module}.weight_scale")
        if part == "weight" and scale is not None:
            dense[module] = _floats(tensor, scale, algo)
        elif part not in {"weight_scale", "input_scale", "pre_quant_scale"}:
            rest[name] = tensor
    return dense, rest


def _floats(weight: Tensor, scale: Tensor, config: dict[str, Any]) -> Tensor:
    algo = config["quant_algo"]
    if algo == "W4A16_AWQ":
        rows = []
        for packed in weight.numpy().astype(np.int64):
            for nibble in (packed & 15, packed >> 4):
                rows.append(np.where(nibble > 7, nibble - 16, nibble))  # noqa: PERF401
        numbers = torch.from_numpy(np.stack(rows).astype(np.float32))
        return numbers * scale.repeat_interleave(config["group_size"], dim=1)
    wide = weight.to(torch.float32)
    return wide * (scale if algo == "FP8" else scale[:, None])


@pytest.mark.parametrize("name", FORMS)
def test_every_form_reads_back_bit_for_bit(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    """No number of the checkpoint changes, and nothing is lost."""
    form = FORMS[name]
    wanted = quantize_folder_as(tiny, tmp_path / "checkpoint", form)
    out, _ = run(tmp_path / "checkpoint", tmp_path, form)

    dense, rest = read_back(out)
    floats = load_file(tiny / "model.safetensors")
    assert set(dense) == set(wanted)
    assert all(torch.equal(dense[layer], wanted[layer]) for layer in wanted)
    assert set(rest) == {x for x in floats if x.removesuffix(".weight") not in wanted}
    assert all(torch.equal(rest[tensor], floats[tensor]) for tensor in rest)
    assert (out / "tokenizer.json").is_file()


def test_bytes_are_modelopts() -> None:
    """The even output lies low, numbers are signed."""
    numbers = torch.tensor(NUMBERS, dtype=torch.int8)

    assert pack_outputs(numbers).view(torch.uint8).tolist() == MODELOPT_BYTES


def test_names_dtypes_and_shapes_are_modelopts(tiny: Path, tmp_path: Path) -> None:
    """As an export of nvidia-modelopt 0.47 with `INT4_AWQ_CFG` has them."""
    quantize_folder_as(tiny, tmp_path / "checkpoint", FORMS["gptq"])
    out, _ = run(tmp_path / "checkpoint", tmp_path, FORMS["gptq"])
    found = {
        name: (str(x.dtype).removeprefix("torch."), list(x.shape))
        for name, x in load_file(out / "model.safetensors").items()
        if name.startswith("model.layers.0.")
    }
    prefix = "model.layers.0."
    sizes = {"mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64)}
    sizes |= {"mlp.down_proj": (64, 128)}
    sizes |= {f"self_attn.{x}_proj": (64, 64) for x in "qkvo"}
    wanted: dict[str, tuple[str, list[int]]] = {
        f"{prefix}{norm}.weight": ("float16", [64])
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    for name, (num_outputs, num_inputs) in sizes.items():
        wanted[f"{prefix}{name}.weight"] = ("uint8", [num_outputs // 2, num_inputs])
        shape = [num_outputs, num_inputs // 64]
        wanted[f"{prefix}{name}.weight_scale"] = ("float32", shape)
    # What the backend joins with its neighbours has none.
    wanted[f"{prefix}self_attn.o_proj.pre_quant_scale"] = ("float16", [64])
    wanted[f"{prefix}mlp.down_proj.pre_quant_scale"] = ("float16", [128])

    assert found == wanted
    document = json.loads((out / "hf_quant_config.json").read_bytes())
    assert document["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": 64,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "exclude_modules": ["lm_head"],
    }
    assert document["quant_method"] == "modelopt"


def test_the_result_is_known_as_a_source(tiny: Path, tmp_path: Path) -> None:
    """A folder that was published can be a model again."""
    quantize_folder_as(tiny, tmp_path / "checkpoint", FORMS["awq"])
    out, _ = run(tmp_path / "checkpoint", tmp_path, FORMS["awq"])
    found = source_scheme(folder_facts(out))

    assert found is not None
    assert (found.packing, found.group_size) == (MODELOPT, 64)
    again, _ = run(out, tmp_path / "again", found)
    assert load_file(again / "model.safetensors").keys() == (
        load_file(out / "model.safetensors").keys()
    )


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(method="rtn", bits=4, group_size=64),
        QuantSpec(method="int8", bits=8),
        QuantSpec(method="fp8", bits=8, activations="dynamic"),
        QuantSpec(method="fp8", bits=8, activations="dynamic", granularity="tensor"),
    ],
    ids=str,
)
def test_the_ledger_of_our_own_stage_comes_along(
    spec: QuantSpec, tiny: Path, tmp_path: Path
) -> None:
    """It balances between the float model and this folder."""
    from lmi_build.quantizers.builtin import PROVIDER

    checkpoint = quantize(tmp_path / "quantize", tiny, spec)
    out, _ = run(checkpoint, tmp_path, PROVIDER.scheme(spec, folder_facts(tiny)))

    source = read_header(tiny / "model.safetensors").tensors
    result = read_header(out / "model.safetensors").tensors
    check_total(read_ledger(out), source, result)


def test_a_ledger_that_does_not_fit_is_refused(tiny: Path, tmp_path: Path) -> None:
    """A result without a row is a fault, not a detail."""
    spec = QuantSpec(method="rtn", bits=4, group_size=64)
    checkpoint = quantize(tmp_path / "quantize", tiny, spec)
    file = checkpoint / "model.safetensors"
    save_file({**load_file(file), "stray": torch.ones(2)}, file)

    with pytest.raises(StageFailed) as caught:
        run(checkpoint, tmp_path, FORMS["gptq"])
    assert caught.value.code == "checkpoint.ledger"
    assert "stray" in caught.value.message


def test_zero_points_are_found_whatever_the_configuration_says(
    tiny: Path, tmp_path: Path
) -> None:
    """`sym: true` over other zero points is refused by the layer's name."""
    form = scheme("gptq", sym=False, **W4)
    quantize_folder_as(tiny, tmp_path / "checkpoint", form)
    file = tmp_path / "checkpoint" / "config.json"
    config = json.loads(file.read_bytes())
    config["quantization_config"]["sym"] = True
    file.write_text(json.dumps(config))

    with pytest.raises(Unsupported) as caught:
        run(tmp_path / "checkpoint", tmp_path, FORMS["gptq"])
    assert caught.value.code == "compile.hf-inexact"
    assert "zero points" in caught.value.message


def test_widths_without_kernels_and_missing_tensors_are_refused(
    tmp_path: Path,
) -> None:
    """Before a byte is written."""
    narrow = make_tiny_model(tmp_path / "narrow")
    quantize_folder_as(narrow, tmp_path / "checkpoint", FORMS["gptq"])
    with pytest.raises(Unsupported) as caught:
        run(tmp_path / "checkpoint", tmp_path / "a", FORMS["gptq"])
    assert "32 output channels" in caught.value.message
    assert not any((tmp_path / "a" / "out").iterdir())

    file = tmp_path / "checkpoint" / "config.json"
    config = json.loads(file.read_bytes())
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 64,
        "version": "gemm",
    }
    file.write_text(json.dumps(config))
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    save_file({"a.weight": torch.ones(2, 2)}, file.with_name("model.safetensors"))
    with pytest.raises(SourceInvalid) as broken:
        run(tmp_path / "checkpoint", tmp_path / "b", FORMS["awq"])
    assert broken.value.code == "checkpoint.format"


@pytest.mark.parametrize(
    ("ignored", "keys", "path"),
    [
        ((), 4, ""),
        ((), 2, "quantize.method"),
        (("*.k_proj",), 4, "quantize.ignore"),
        (("*.0.mlp.gate_proj",), 4, "quantize.ignore"),
        (("*.gate_proj", "*.up_proj"), 4, ""),
        (("*.down_proj",), 4, ""),
    ],
)
def test_the_plan_refuses_what_the_stage_would(
    tmp_path: Path, ignored: tuple[str, ...], keys: int, path: str
) -> None:
    """Kernels' widths and parts of joined linears, before and after quantizing."""
    model = make_tiny_model(
        tmp_path / "model", num_key_value_heads=keys, dtype="float16"
    )
    spec = QuantSpec(method="int8", ignore=("lm_head", *ignored))
    facts = folder_facts(model)
    recipe = sample_recipe(
        quantize=spec,
        compile=CompileSpec(
            backend="tensorrt-llm",
            target="ml.g6.12xlarge",
            release="tensorrt-llm-1.2.1",
            artifact="hf-quantized",
        ),
    )
    form = BUILTIN.scheme(spec, facts)

    found = PROVIDER.check(recipe, facts, form)
    planned = [item for item in found if item.code == "compile.hf-format"]
    checkpoint = quantize(tmp_path / "quantize", model, spec)

    assert {item.path for item in planned} == ({path} if path else set())
    came_so = list(
        PROVIDER.check(
            replace(recipe, quantize=QuantSpec(method="none")),
            folder_facts(checkpoint),
            form,
        )
    )
    assert any(item.code == "compile.hf-format" for item in came_so) is bool(path)
    if not path:
        run(checkpoint, tmp_path / "run", form)
        return
    with pytest.raises(Unsupported) as caught:
        run(checkpoint, tmp_path / "run", form)
    assert caught.value.code == "compile.hf-inexact"
    assert planned[0].message in caught.value.message


def test_what_the_loader_rounds_is_said(tmp_path: Path) -> None:
    """Scales in a bfloat16 model, joined layers of fp8 with several scales."""
    model = make_tiny_model(tmp_path / "model", num_key_value_heads=4, dtype="bfloat16")
    said = {}
    for name in ("gptq", "pack-quantized", "fp8", "fp8-rows"):
        quantize_folder_as(model, tmp_path / name / "checkpoint", FORMS[name])
        _, events = run(tmp_path / name / "checkpoint", tmp_path / name, FORMS[name])
        said[name] = notes(events)

    assert said == {
        "gptq": {"compile.hf-scales"},
        "pack-quantized": set(),
        "fp8": {"compile.hf-rescaled"},
        "fp8-rows": set(),
    }


def test_cache_scales_stand_beside_their_projections(
    tiny: Path, tmp_path: Path
) -> None:
    """`self_attn.k_scale` becomes `self_attn.k_proj.k_scale`, and the file says FP8."""
    form = scheme(
        "float-quantized",
        granularity="tensor",
        kv_cache_dtype="fp8",
        **{**STATIC, "activation_scheme": "dynamic"},
    )
    quantize_folder_as(tiny, tmp_path / "checkpoint", form)
    file = tmp_path / "checkpoint" / "model.safetensors"
    scales = {
        f"model.layers.{layer}.self_attn.{part}_scale": torch.tensor([0.5 + layer])
        for layer in range(2)
        for part in "kv"
    }
    save_file({**load_file(file), **scales}, file)
    out, events = run(tmp_path / "checkpoint", tmp_path, form)

    found = load_file(out / "model.safetensors")
    assert found["model.layers.1.self_attn.v_proj.v_scale"].tolist() == [1.5]
    assert not any(name.endswith("self_attn.k_scale") for name in found)
    document = json.loads((out / "hf_quant_config.json").read_bytes())
    assert document["quantization"]["kv_cache_quant_algo"] == "FP8"
    assert {"compile.hf-cache", "compile.hf-activations"} <= notes(events)


def test_a_float_model_is_passed_on(tiny: Path, tmp_path: Path) -> None:
    """Every file as it is, and no word of quantization."""
    form = replace(FORMS["gptq"], packing="none")
    out, _ = run(tiny, tmp_path, form)

    names = sorted(path.name for path in tiny.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    assert all((out / x).read_bytes() == (tiny / x).read_bytes() for x in names)
