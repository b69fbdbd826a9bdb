"""
A quantized checkpoint of TensorRT-LLM means what quantization left, bit for bit.

Each method's result is converted for one, two and four ranks, read back by a reader
that shares no code with the writer, and compared with what the same numbers mean in
their Hugging Face form: every weight, every code, every step of inputs and caches, and
the logits of the model that they make.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_architectures
from bench.unpack import read_checkpoint
from lmi_build.values.recipe import CalibrationSpec, QuantSpec
from make_tiny_model import _write_tokenizer
from stage_jobs import quantize
from trtllm_models import UNSTAGED, VERSION, convert
from trtllm_reader import FAMILIES, Model, read_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Quantized = Callable[[str, str], Path]

CALIBRATION = CalibrationSpec(num_samples=4, max_seq_len=64)
FOUR = QuantSpec(method="rtn", bits=4, group_size=64, calibration=CALIBRATION)
SMOOTH = QuantSpec(method="smoothquant", calibration=CALIBRATION)
# The last release that takes linears of any width.
WIDTHS_ANY = "0.12.0"
# Heads of 64 and widths of 256, so that kernels take the shares of four ranks.
_SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _SIZES),
    "mistral": ("mistral", {**_SIZES, "num_key_value_heads": 4}),
    "qwen2": ("qwen2", {k: v for k, v in _SIZES.items() if k != "head_dim"}),
    "gemma": ("gemma", {**_SIZES, "num_key_value_heads": 1}),
    "gpt2": ("gpt2", {"n_layer": 2, "n_embd": 256, "n_head": 4}),
    "gpt_neox": (
        "gpt_neox",
        {
            "num_hidden_layers": 2,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_attention_heads": 8,
        },
    ),
    "narrow-heads": (
        "llama",
        {
            **_SIZES,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 32,
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to quantize, and what TensorRT-LLM calls the result."""

    spec: QuantSpec
    algorithm: str


METHODS = {
    "four-bit-groups": Method(spec=replace(FOUR, format="gptq"), algorithm="W4A16_AWQ"),
    "gptq": Method(
        spec=replace(FOUR, method="gptq", group_size=128), algorithm="W4A16_AWQ"
    ),
    "awq-with-zero-points": Method(
        spec=replace(FOUR, method="awq", sym=False),
        algorithm="W4A16_AWQ",
    ),
    "awq-and-an-int8-cache": Method(
        spec=replace(
            FOUR, method="awq", kv_cache_dtype="int8", format="compressed-tensors"
        ),
        algorithm="W4A16_AWQ",
    ),
    "int8": Method(
        spec=QuantSpec(method="int8", bits=8, calibration=CALIBRATION),
        algorithm="W8A16",
    ),
    "smoothquant-per-token": Method(
        spec=replace(SMOOTH, activations="dynamic"),
        algorithm="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    ),
    "smoothquant-static": Method(
        spec=replace(SMOOTH, activations="static"),
        algorithm="W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN",
    ),
    "smoothquant-and-an-int8-cache": Method(
        spec=replace(SMOOTH, activations="static", kv_cache_dtype="int8"),
        algorithm="W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN",
    ),
    "smoothquant-plain": Method(
        spec=replace(SMOOTH, activations="static"), algorithm="W8A8_SQ_PER_CHANNEL"
    ),
}
# Each architecture by the methods that TensorRT-LLM has for it.
PAIRS = [("llama", name) for name in METHODS] + [
    ("mistral", "four-bit-groups"),
    ("qwen2", "awq-with-zero-points"),
    ("qwen2", "smoothquant-static"),
    ("gemma", "four-bit-groups"),
    ("gemma", "int8"),
    ("gpt2", "int8"),
    ("gpt2", "smoothquant-per-token"),
    ("gpt2", "awq-with-zero-points"),
    ("gpt2", "smoothquant-and-an-int8-cache"),
    *(
        (name, method)
        for name in ("gpt_neox", "narrow-heads")
        for method in (
            "awq-with-zero-points",
            "int8",
            "smoothquant-per-token",
            "smoothquant-and-an-int8-cache",
        )
    ),
]
RANKS = [(1, 1), (2, 1), (4, 1), (2, 2)]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """What a method makes of a model, made once."""
    root = tmp_path_factory.mktemp("quantized")

    def find(name: str, method: str) -> Path:
        source = root / name
        if not source.exists():
            base, options = MODELS[name]
            model = tiny_architectures.build(base, **options)
            model.to(torch.float16).save_pretrained(source)
            _write_tokenizer(source, tiny_architectures.VOCAB_SIZE)
        out = root / f"{name}-{method}"
        if not out.exists():
            quantize(out, source, METHODS[method].spec)
        return out / "out"

    return find


def _convert(folder: Path, out: Path, method: Method, tp: int, pp: int = 1) -> Model:
    algorithm = {
        "quant_algo": method.algorithm,
        "group_size": max(method.spec.group_size, 0),
        "has_zero_point": not method.spec.sym,
    }
    version = WIDTHS_ANY if "narrow" in folder.parent.name else VERSION
    return read_model(
        convert(
            folder,
            out,
            dtype="float16",
            version=version,
            tp=tp,
            pp=pp,
            algorithm=algorithm,
        )
    )


def _wanted(folder: Path, model: Model) -> dict[str, torch.Tensor]:
    """What the quantized checkpoint means, in the form that the model stores it."""
    config = json.loads((folder / "config.json").read_text())
    checkpoint = read_checkpoint(folder, config["quantization_config"])
    transposed = FAMILIES[model.config["architecture"]].transposed
    wanted = {}
    for name, value in checkpoint.tensors.items():
        coded = name.removesuffix(".weight") in checkpoint.layers
        wanted[name] = (value.T if transposed and coded else value).float()
    if FAMILIES[model.config["architecture"]].plus_one:
        # A norm is stored as one more, in the checkpoint's dtype.
        norms = [name for name in wanted if name.endswith("norm.weight")]
        for name in norms:
            wanted[name] = (wanted[name] + 1).to(torch.float16).float() - 1
    return {
        name: value
        for name, value in wanted.items()
        if not name.endswith(("_scale", "_zero_point"))
    }


def _coded(folder: Path) -> set[str]:
    """Linears that quantization left as codes."""
    config = json.loads((folder / "config.json").read_text())
    return set(read_checkpoint(folder, config["quantization_config"]).layers)


def _split(name: str, method: str) -> list[tuple[int, int]]:
    """Ranks whose shares hold whole groups, and stages that the class has."""
    spec = METHODS[method].spec
    return [
        (tp, pp)
        for tp, pp in RANKS
        if spec.group_size * tp <= 256 and (pp == 1 or name not in UNSTAGED)
    ]


@pytest.mark.parametrize(
    ("name", "method", "tp", "pp"),
    [(*pair, tp, pp) for pair in PAIRS for tp, pp in _split(*pair)],
)
def test_every_weight_comes_back(
    name: str, method: str, tp: int, pp: int, quantized: Quantized, tmp_path: Path
) -> None:
    folder = quantized(name, method)

    model = _convert(folder, tmp_path / "out", METHODS[method], tp, pp)

    found, wanted = model.state_dict(), _wanted(folder, model)
    embedding = wanted[f"{FAMILIES[model.config['architecture']].embedding}.weight"]
    wanted_head = wanted.pop("lm_head.weight", embedding)
    # Some classes read the embedding where there is no head.
    assert torch.equal(found.pop("lm_head.weight", embedding), wanted_head)
    assert set(found) == set(wanted)
    for key, weight in wanted.items():
        assert torch.equal(found[key], weight), key
    section = model.config["quantization"]
    assert section["quant_algo"] == METHODS[method].algorithm
    assert set(model.coded) == _coded(folder)
    cached = METHODS[method].spec.kv_cache_dtype != "auto"
    assert len(model.cache_scales) == (2 if cached else 0)


@pytest.mark.parametrize("method", ["smoothquant-static", "smoothquant-plain"])
def test_steps_of_inputs_come_back(
    method: str, quantized: Quantized, tmp_path: Path
) -> None:
    folder = quantized("llama", method)
    config = json.loads((folder / "config.json").read_text())
    checkpoint = read_checkpoint(folder, config["quantization_config"])

    model = _convert(folder, tmp_path / "out", METHODS[method], tp=2)

    assert set(model.input_steps) == set(checkpoint.input_scales)
    for module, step in model.input_steps.items():
        # Linears that read one input share the largest of their steps.
        readers = [
            float(scale)
            for other, scale in checkpoint.input_scales.items()
            if other.rpartition(".")[0] == module.rpartition(".")[0]
            and _reads_alike(other, module)
        ]
        assert float(step) == max(readers)


def _reads_alike(one: str, other: str) -> bool:
    groups = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    return one == other or any(
        one.endswith(group) and other.endswith(group) for group in groups
    )


def test_the_caches_scale_serves_keys_and_values(
    quantized: Quantized, tmp_path: Path
) -> None:
    method = "awq-and-an-int8-cache"
    folder = quantized("llama", method)
    source = load_file(folder / "model.safetensors")

    model = _convert(folder, tmp_path / "out", METHODS[method], tp=2)

    assert model.config["quantization"]["kv_cache_quant_algo"] == "INT8"
    assert len(model.cache_scales) == 2
    for layer, scale in model.cache_scales.items():
        attention = f"model.layers.{layer}.self_attn"
        both = [source[f"{attention}.{part}_scale"] for part in "kv"]
        assert float(scale) == float(torch.cat(both).max())


@pytest.mark.parametrize("method", ["awq-with-zero-points", "smoothquant-per-token"])
def test_the_model_says_the_same(
    method: str, quantized: Quantized, tmp_path: Path
) -> None:
    """Logits of a transformers model with these weights are the reference's."""
    folder = quantized("llama", method)
    model = _convert(folder, tmp_path / "out", METHODS[method], tp=4)

    found = _logits(folder, model.state_dict(), tmp_path / "found")
    reference = _logits(folder, _wanted(folder, model), tmp_path / "reference")

    assert torch.equal(found, reference)
    assert bool(torch.isfinite(found).all())


def _logits(
    folder: Path, weights: dict[str, torch.Tensor], target: Path
) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config))
    tensors = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, tiny_architectures.VOCAB_SIZE, (2, 32), generator=generator)
    with torch.inference_mode():
        result: torch.Tensor = model(ids).logits
    return result
