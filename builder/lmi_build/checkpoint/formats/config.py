"""
The `quantization_config` of a `config.json`, written for its readers and read.

Light: the planner reads it from other tools' checkpoints. What each reader looks at:

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

from lmi_build.checkpoint.formats.layout import AUTOGPTQ, BITS
from lmi_build.checkpoint.formats.modelopt import (
    METHOD,
    modelopt_entries,
    modelopt_scheme,
)
from lmi_build.errors import Unsupported
from lmi_build.text import join_words
from lmi_build.values.quant import COMPRESSED_TENSORS, MODELOPT, QuantScheme

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lmi_build.checkpoint.formats.layout import Shapes

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


def read_scheme(config: Mapping[str, Any]) -> QuantScheme:
    """
    What a checkpoint of any tool is.

    Args:
        config: Its `quantization_config`.

    Returns:
        The scheme. `scale_dtype` is only known from the tensors; `sym` of an AutoAWQ
        checkpoint as well, where it says `zero_point: true`.

    Raises:
        Unsupported: `checkpoint.scheme`, naming the entry that is not read.
    """
    method = str(config.get("quant_method", "")).lower()
    try:
        if method == "gptq":
            scheme = _read_gptq(config)
        elif method == "awq":
            scheme = _read_awq(config)
        elif method == "compressed-tensors":
            scheme = _read_compressed(config)
        elif method == METHOD:
            scheme = _read_modelopt(config)
        else:
            raise _unread("quant_method", method or None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unsupported(
            f"`quantization_config` is not of the form that `{method}` has: {error!r}",
            code="checkpoint.scheme",
            hints=("compare it with the tool's documentation",),
        ) from error
    bits = BITS[scheme.packing]
    if scheme.weight_bits not in bits:
        raise _unread("bits", scheme.weight_bits)
    return scheme


def _unread(entry: str, value: object) -> Unsupported:
    methods = ("gptq", "awq", "compressed-tensors")
    return Unsupported(
        f"checkpoints with `{entry}: {value}` in `quantization_config` are not read",
        code="checkpoint.scheme",
        hints=(
            f"use a checkpoint of {join_words(methods)} with one scheme for all layers",
        ),
    )


def _integers(config: Mapping[str, Any], *names: str) -> int:
    value = next((config[x] for x in names if config.get(x) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{names[0]} is {value!r}")
    return value


def _read_gptq(config: Mapping[str, Any]) -> QuantScheme:
    packing = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    if packing.lower() not in AUTOGPTQ:
        raise _unread("checkpoint_format", packing)
    dynamic = config.get("dynamic") or {}
    overrides = [name for name in dynamic if not str(name).startswith("-:")]
    if overrides:
        raise _unread("dynamic", overrides[0])
    if config.get("pack_dtype", "int32") not in {"int32", None}:
        raise _unread("pack_dtype", config["pack_dtype"])
    static = bool(config.get("static_groups"))
    return QuantScheme(
        weight_bits=_integers(config, "bits"),
        weight_dtype="int",
        group_size=_integers(config, "group_size"),
        sym=bool(config.get("sym", True)),
        activation_bits=16,
        packing=packing.lower(),
        act_order=bool(config.get("desc_act", False)) and not static,
    )


def _read_modelopt(config: Mapping[str, Any]) -> QuantScheme:
    """Those that lie as compressed-tensors lays them out, under other words."""
    scheme = modelopt_scheme(config)
    if scheme is None or scheme.packing == MODELOPT:
        raise _unread("quant_algo", modelopt_entries(config).get("quant_algo"))
    return scheme


def _read_awq(config: Mapping[str, Any]) -> QuantScheme:
    version = str(config.get("version") or config.get("format") or "gemm")
    if version.lower() != "gemm":
        raise _unread("version", version)
    return QuantScheme(
        weight_bits=_integers(config, "bits", "w_bit"),
        weight_dtype="int",
        group_size=_integers(config, "group_size", "q_group_size"),
        sym=not config.get("zero_point", True),
        activation_bits=16,
        packing="awq",
    )


def _read_compressed(config: Mapping[str, Any]) -> QuantScheme:
    groups = list(config["config_groups"].values())
    if len(groups) != 1:
        raise _unread("config_groups", f"{len(groups)} groups")
    group = groups[0]
    packing = str(group.get("format") or config.get("format"))
    if packing not in COMPRESSED_TENSORS:
        raise _unread("format", packing)
    for name in ("sparsity_config", "transform_config"):
        entry = config.get(name)
        if entry and entry.get("format") != "dense":
            raise _unread(name, entry)
    if group.get("output_activations"):
        raise _unread("output_activations", group["output_activations"])
    weights = group["weights"]
    strategy = weights.get("strategy") or _strategy(weights.get("group_size"))
    if strategy not in {"group", "channel", "tensor"} or weights.get("dynamic"):
        raise _unread("weights.strategy", strategy)
    activation_dtype, activation_scheme = _read_activations(
        group.get("input_activations")
    )
    grouped = strategy == "group"
    return QuantScheme(
        weight_bits=_integers(weights, "num_bits"),
        weight_dtype=str(weights.get("type", "int")).lower(),
        group_size=_integers(weights, "group_size") if grouped else -1,
        sym=bool(weights.get("symmetric", True)),
        activation_bits=16 if activation_scheme == "none" else 8,
        packing=packing,
        activation_dtype=activation_dtype,
        activation_scheme=activation_scheme,
        granularity="tensor" if strategy == "tensor" else "channel",
        kv_cache_dtype=_read_kv_cache(config.get("kv_cache_scheme")),
        act_order=weights.get("actorder") in {"group", "dynamic", True},
    )


def _strategy(group_size: Any) -> str:
    """What compressed-tensors takes where no strategy is named."""
    if group_size is None:
        return "tensor"
    return "channel" if group_size == -1 else "group"


def _read_activations(entry: Mapping[str, Any] | None) -> tuple[str, str]:
    if not entry:
        return "none", "none"
    if entry.get("num_bits", 8) != 8 or not entry.get("symmetric", True):  # noqa: PLR2004
        raise _unread("input_activations", dict(entry))
    dynamic = entry.get("dynamic", False)
    strategy = entry.get("strategy") or _strategy(entry.get("group_size"))
    if (dynamic, strategy) not in {(True, "token"), (False, "tensor")}:
        raise _unread("input_activations.strategy", strategy)
    return str(entry.get("type", "int")).lower(), "dynamic" if dynamic else "static"


def _read_kv_cache(entry: Mapping[str, Any] | None) -> str:
    if not entry:
        return "auto"
    kind = str(entry.get("type", "int")).lower()
    plain = entry.get("num_bits", 8) == 8 and not entry.get("dynamic", False)  # noqa: PLR2004
    if not plain or entry.get("strategy", "tensor") != "tensor":
        raise _unread("kv_cache_scheme", dict(entry))
    return {"float": "fp8", "int": "int8"}[kind]
