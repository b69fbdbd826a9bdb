"""
The `quantization_config` of a `config.json`, written for its readers.

What each of them looks at:

- transformers: `GPTQConfig` and `AwqConfig` through gptqmodel, and
  `CompressedTensorsConfig`. Of GPTQ's lists it looks at
  `modules_in_block_to_quantize` alone, endings of the names of what is quantized.
- vLLM: `gptq`/`gptq_marlin`, `awq`/`awq_marlin`, `compressed_tensors`. AWQ's
  `modules_to_not_convert` match as substrings, compressed-tensors' `ignore` as whole
  names; both work with full names.
- ONNX Runtime GenAI's builder: `bits`, `group_size`, `desc_act`, for gptq and awq.
- TensorRT-LLM: `config_groups` of compressed-tensors, of which it runs only fp8 with a
  scale a row and a scale per token. It does not look at `type`, so an int8 checkpoint
  of that shape must not be given to it.

Sources: transformers 5.23 `utils/quantization_config.py`; compressed-tensors 0.19
`quantization/quant_args.py`, `quant_config.py`; vLLM
`model_executor/layers/quantization`; TensorRT-LLM `models/quant_config_utils.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.formats.layout import AUTOGPTQ

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lmi_build.checkpoint.formats.layout import Shapes
    from lmi_build.values.quant import QuantScheme

LM_HEAD = "lm_head"
# The release whose layout is written; readers show it, none compares it.
COMPRESSED_TENSORS_VERSION = "0.19.0"
# Matrices that are looked up, not multiplied: no reader takes them for linears.
_TABLES = frozenset(
    {
        "embed_tokens",
        "embed_positions",
        "embed_in",
        "wte",
        "wpe",
        "word_embeddings",
        "position_embeddings",
        "tok_embeddings",
        "shared",
        "relative_attention_bias",
    }
)
# What comes before a module's name inside its numbered block.
_IN_BLOCK = re.compile(r"^.*?\.\d+\.")
_FLOAT8 = {"fp8": "float", "int8": "int"}


def float_linears(shapes: Shapes, linears: Iterable[str]) -> tuple[str, ...]:
    """
    Every linear of a model that stays in float, routers and the head among them.

    Args:
        shapes: Tensor name to dtype and shape, of the source.
        linears: Module names of what is quantized.

    Returns:
        Sorted module names. `lm_head` is one of them even where it shares the
        embedding's weights: readers have a module of that name.
    """
    chosen = set(linears)
    left = {
        name.removesuffix(".weight")
        for name, (_, shape) in shapes.items()
        if name.endswith(".weight") and len(shape) == len("OI")
    }
    left = {name for name in left if name.rpartition(".")[2] not in _TABLES}
    return tuple(sorted((left | {LM_HEAD}) - chosen))


def quantization_config(
    scheme: QuantScheme,
    *,
    left: Sequence[str],
    method: str,
    options: Mapping[str, Any] | None = None,
    linears: Sequence[str] = (),
) -> dict[str, Any]:
    """
    The entry of `config.json` that the format's readers expect.

    Args:
        scheme: What is on disk.
        left: Linears that stay in float, as `float_linears` gives them.
        method: Who chose the numbers, for people who read the file.
        options: How: `damp_percent`, `true_sequential`; only AutoGPTQ has a place.
        linears: What is quantized; only transformers asks for it, and only for
            AutoGPTQ checkpoints of which some linears stay in float.
    """
    if scheme.packing in AUTOGPTQ:
        return _gptq_config(scheme, left, method, options or {}, linears)
    if scheme.packing == "awq":
        return _awq_config(scheme, left)
    return _compressed_config(scheme, left)


def _gptq_config(
    scheme: QuantScheme,
    left: Sequence[str],
    method: str,
    options: Mapping[str, Any],
    linears: Sequence[str],
) -> dict[str, Any]:
    """
    `desc_act` speaks of the group index on disk, not of the order of the walk.

    Static groups leave that index plain, and then no reader needs to permute.
    """
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "checkpoint_format": scheme.packing,
        "bits": scheme.weight_bits,
        "group_size": scheme.group_size,
        "sym": scheme.sym,
        "desc_act": scheme.act_order,
        "static_groups": not scheme.act_order,
        "true_sequential": bool(options.get("true_sequential", True)),
        "lm_head": LM_HEAD not in left,
        "damp_percent": options.get("damp_percent", 0.01),
        "pack_dtype": "int32",
        "meta": {"quantizer": ["lmi-build"], "method": method},
    }
    kept = [name for name in left if name != LM_HEAD]
    if kept:
        config["modules_to_not_convert"] = kept
        config["dynamic"] = {f"-:^{_escape(name)}$": {} for name in kept}
    if kept and linears:
        config["modules_in_block_to_quantize"] = [_endings(linears, kept)]
    return config


def _endings(linears: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Ends of names that fit what is quantized and nothing else, as few as will do."""
    short = {_IN_BLOCK.sub("", name, count=1) for name in linears}
    same = any(name.endswith(tuple(short)) for name in kept)
    return sorted(linears if same else short)


def _escape(name: str) -> str:
    return name.replace(".", r"\.")


def _awq_config(scheme: QuantScheme, left: Sequence[str]) -> dict[str, Any]:
    """`zero_point` is always true: a symmetric grid has zero points of 8."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": scheme.weight_bits,
        "group_size": scheme.group_size,
        "zero_point": True,
        "modules_to_not_convert": list(left),
    }


def _compressed_config(scheme: QuantScheme, left: Sequence[str]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.packing,
        "version": COMPRESSED_TENSORS_VERSION,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _weight_args(scheme),
                "input_activations": _activation_args(scheme),
                "output_activations": None,
            }
        },
        "ignore": list(left),
        "kv_cache_scheme": _kv_cache_args(scheme),
    }


def _args(
    *,
    kind: str,
    num_bits: int,
    symmetric: bool,
    strategy: str,
    dynamic: bool,
    group_size: int | None = None,
    actorder: str | None = None,
) -> dict[str, Any]:
    return {
        "num_bits": num_bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": group_size,
        "block_structure": None,
        "dynamic": dynamic,
        "actorder": actorder,
        "observer": None if dynamic else "minmax",
        "observer_kwargs": {},
    }


def _weight_args(scheme: QuantScheme) -> dict[str, Any]:
    grouped = scheme.group_size != -1
    return _args(
        kind=scheme.weight_dtype,
        num_bits=scheme.weight_bits,
        symmetric=scheme.sym,
        strategy="group" if grouped else scheme.granularity,
        dynamic=False,
        group_size=scheme.group_size if grouped else None,
        actorder="group" if scheme.act_order else None,
    )


def _activation_args(scheme: QuantScheme) -> dict[str, Any] | None:
    if scheme.activation_scheme == "none":
        return None
    dynamic = scheme.activation_scheme == "dynamic"
    return _args(
        kind=scheme.activation_dtype,
        num_bits=8,
        symmetric=True,
        strategy="token" if dynamic else "tensor",
        dynamic=dynamic,
    )


def _kv_cache_args(scheme: QuantScheme) -> dict[str, Any] | None:
    if scheme.kv_cache_dtype == "auto":
        return None
    return _args(
        kind=_FLOAT8[scheme.kv_cache_dtype],
        num_bits=8,
        symmetric=True,
        strategy="tensor",
        dynamic=False,
    )
