"""The `serving.properties` with which an image loads a folder as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.vllm.bounds import ServedBounds
    from lmi_build.catalog.vllm_releases import Handler
    from lmi_build.digest import JSONValue

# Every handler knows these words; longer ones only some do.
_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """
    What a server is told.

    Args:
        bounds: Lowered.
        tensor_parallel_size: Devices that a layer is split over.
        pipeline_parallel_size: Devices that the layers are split over.
        dtype: What it computes in.
        share: `gpu_memory_utilization`.
        kv_cache_dtype: `auto` or `fp8`.
        options: `serve.options`, checked.
        trust_remote_code: The folder holds code of the model's own.
    """

    bounds: ServedBounds
    tensor_parallel_size: int
    pipeline_parallel_size: int
    dtype: str
    share: float
    kv_cache_dtype: str
    options: Mapping[str, JSONValue]
    trust_remote_code: bool = False


def serving_properties(handler: Handler, told: Told) -> dict[str, str]:
    """
    Every entry of the file that this backend answers for.

    The folder says itself how it is quantized: `option.quantize` is never written,
    since vLLM ends where it contradicts the folder, and another handler would quantize
    once more.

    Args:
        handler: What reads them.
        told: What it is told.
    """
    entries = {
        "engine": handler.engine,
        "option.entryPoint": handler.entry_point,
        # Set, so that no `config.json` and no feature of the image decides.
        "option.rolling_batch": handler.rolling_batch,
    }
    entries |= {f"option.{name}": text for name, text in handler.further.items()}
    ranks = told.tensor_parallel_size * told.pipeline_parallel_size
    if ranks > 1:
        entries |= {f"option.{name}": text for name, text in handler.spread.items()}
    if told.trust_remote_code:
        entries["option.trust_remote_code"] = "true"
    values = _values(told)
    for name, key in handler.keys.items():
        if name in values:
            entries[f"option.{key}"] = values[name]
    for name, key in handler.server_keys.items():
        entries[key] = values[name]
    return entries


def _values(told: Told) -> dict[str, str]:
    """What is promised, by our names."""
    bounds = told.bounds
    values = {
        "max_seq_len": str(bounds.max_seq_len),
        "max_batch_size": str(bounds.max_batch_size),
        "max_num_tokens": str(bounds.max_num_tokens),
        "tensor_parallel_size": str(told.tensor_parallel_size),
        "pipeline_parallel_size": str(told.pipeline_parallel_size),
        "dtype": _DTYPES[told.dtype],
        "gpu_memory_utilization": f"{told.share:g}",
    }
    if told.kv_cache_dtype != "auto":
        values["kv_cache_dtype"] = told.kv_cache_dtype
    for name, value in told.options.items():
        if name not in values:
            values[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return values
