"""
Checkpoints of NVIDIA's Model Optimizer: what their configuration says.

They are Hugging Face folders whose linears keep the name `weight`. What they are
stands in `hf_quant_config.json`, and since 0.29 in `config.json` as well, in other
words. TensorRT-LLM's PyTorch backend and vLLM read them.

| quant_algo | NAME.weight | NAME.weight_scale | more |
| --- | --- | --- | --- |
| FP8 | float8_e4m3fn [O, I] | float32 [] | input_scale float32 [] |
| FP8_PER_CHANNEL_PER_TOKEN | float8_e4m3fn [O, I] | float32 [O] | |
| W8A16 | int8 [O, I] | float32 [O] | |
| W4A16_AWQ | uint8 [O / 2, I] | float32 [O, G] | pre_quant_scale [I] |

A byte of W4A16_AWQ holds outputs 2k (low) and 2k + 1 of one input, as signed numbers.
With `pre_quant_scale` the layer multiplies its input by it first.

Source: nvidia-modelopt 0.47 `torch/export/quant_utils.py` (`pack_int4_in_uint8`,
`to_quantized_weight`, `get_quant_config`), `convert_hf_config.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmi_build.values.quant import MODELOPT, QuantScheme

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.digest import JSONValue

HF_QUANT_CONFIG = "hf_quant_config.json"
METHOD = "modelopt"
W4A16_AWQ = "W4A16_AWQ"
# As modelopt exports a model without naming a group.
_GROUP_SIZE = 128
_KV_CACHES: Mapping[str, str] = {"FP8": "fp8", "INT8": "int8"}


def modelopt_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    The same entries from either of the two files.

    Args:
        config: `hf_quant_config.json`, or `quantization_config` of `config.json`.

    Returns:
        `quant_algo`, `group_size`, `kv_cache_quant_algo`, `exclude_modules`,
        `has_zero_point`, as far as they are known.
    """
    inner = config.get("quantization")
    entries = dict(inner if isinstance(inner, dict) else config)
    if "ignore" in entries:
        entries.setdefault("exclude_modules", entries["ignore"])
    groups = entries.get("config_groups")
    if "group_size" not in entries and isinstance(groups, dict) and len(groups) == 1:
        weights = next(iter(groups.values())).get("weights") or {}
        if weights.get("group_size"):
            entries["group_size"] = weights["group_size"]
    cache = entries.get("kv_cache_scheme")
    if cache and "kv_cache_quant_algo" not in entries:
        entries["kv_cache_quant_algo"] = _cache_algo(cache)
    return entries


def _cache_algo(cache: Any) -> str:
    if not isinstance(cache, dict):
        return str(cache)
    kind = "FP" if str(cache.get("type", "")).lower() == "float" else "INT"
    return f"{kind}{cache.get('num_bits')}"


def modelopt_scheme(config: Mapping[str, Any]) -> QuantScheme | None:
    """
    What such a checkpoint is.

    Args:
        config: Either of the two.

    Returns:
        The scheme; of packing `modelopt` where weights lie as nothing else has them.
        None for an algorithm or an option that is not read, and for cache scales,
        which modelopt has beside other modules than compressed-tensors.

    Raises:
        TypeError: An entry is of another type than it ought to be.
    """
    entries = modelopt_entries(config)
    algo = str(entries.get("quant_algo"))
    cache = entries.get("kv_cache_quant_algo")
    if cache and str(cache) not in _KV_CACHES:
        return None
    kv_cache_dtype = _KV_CACHES[str(cache)] if cache else "auto"
    plain = QuantScheme(
        weight_bits=8,
        weight_dtype="float",
        group_size=-1,
        sym=True,
        activation_bits=8,
        packing=MODELOPT if cache else "float-quantized",
        activation_dtype="float",
        activation_scheme="static",
        granularity="tensor",
        kv_cache_dtype=kv_cache_dtype,
        scale_dtype="float32",
    )
    if algo == "FP8":
        return plain
    return _other_scheme(algo, entries, plain)


def _other_scheme(
    algo: str, entries: Mapping[str, Any], plain: QuantScheme
) -> QuantScheme | None:
    if algo == "FP8_PER_CHANNEL_PER_TOKEN":
        return replace(plain, activation_scheme="dynamic", granularity="channel")
    weight_only = replace(
        plain,
        weight_dtype="int",
        activation_bits=16,
        activation_dtype="none",
        activation_scheme="none",
        granularity="channel",
    )
    if algo == "W8A16":
        packing = "int-quantized" if plain.packing == "float-quantized" else MODELOPT
        return replace(weight_only, packing=packing)
    if algo == W4A16_AWQ and not entries.get("has_zero_point"):
        size = entries.get("group_size") or _GROUP_SIZE
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"group_size is {size!r}")
        return replace(weight_only, weight_bits=4, group_size=size, packing=MODELOPT)
    return None


def modelopt_documents(
    algo: str,
    *,
    left: Sequence[str],
    group_size: int,
    kv_cache_dtype: str,
) -> tuple[dict[str, JSONValue], dict[str, JSONValue]]:
    """
    Both files' entries for a checkpoint in this form.

    Args:
        algo: Its `quant_algo`.
        left: Linears that stay in float.
        group_size: Input channels per scale, for `W4A16_AWQ`.
        kv_cache_dtype: `auto` or `fp8`.

    Returns:
        `hf_quant_config.json`, and `quantization_config` of `config.json`.
    """
    producer: dict[str, JSONValue] = {"name": "lmi-build"}
    cache = "FP8" if kv_cache_dtype == "fp8" else None
    entries: dict[str, JSONValue] = {
        "quant_algo": algo,
        "kv_cache_quant_algo": cache,
    }
    if algo == W4A16_AWQ:
        entries |= {
            "group_size": group_size,
            "has_zero_point": False,
            "pre_quant_scale": True,
        }
    entries["exclude_modules"] = list(left)
    inline: dict[str, JSONValue] = {
        "quant_method": METHOD,
        "quant_algo": algo,
        "ignore": list(left),
        "producer": producer,
    }
    if algo == W4A16_AWQ:
        inline["group_size"] = group_size
    if cache:
        inline["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    # TensorRT-LLM from 1.3 on takes the file for modelopt's by one of two signs: the
    # producer's name, or this.
    document: dict[str, JSONValue] = {
        "producer": producer,
        "quant_method": METHOD,
        "quantization": entries,
    }
    return document, inline
