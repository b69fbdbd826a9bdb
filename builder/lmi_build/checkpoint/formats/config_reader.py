"""
The `quantization_config` of a checkpoint that any tool wrote, as a scheme.

Light: the planner asks before a weight is fetched. What an entry means beyond the
scheme is refused by its name, never passed over.

Sources: as `config` names them; AutoAWQ's older spellings `w_bit` and `q_group_size`.
"""

from __future__ import annotations

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
    from collections.abc import Mapping


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
