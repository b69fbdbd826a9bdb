"""
Scales of an eight-bit cache of keys and values.

Serving stores keys and values as int8 or E4M3 numbers, each divided by a scale that
calibration found: one per layer for keys and one for values, or one per head. Keys are
observed as they are cached, after the rotary embedding; rotation moves magnitude
between the two halves of a head, so the largest key before it may be smaller, by up to
the square root of two.

Who reads what, for a layer with scales k and v:

- vLLM: `self_attn.k_scale`, `self_attn.v_scale`, one number each; x / scale is cast to
  E4M3, so scale = absmax / 448.
- compressed-tensors: the same names, with `kv_cache_scheme` in the configuration
  (`type` int or float, `num_bits` 8, `strategy` tensor or attn_head). For int8 it
  spreads absmax over 127.5 steps and clamps at -128 and 127.
- TensorRT-LLM: `attention.kv_cache_scaling_factor`, one number [1] for keys and values
  together, absmax / 127 for int8 and absmax / 448 for fp8.

A cache must not clip what calibration saw, nor a little beyond it: `headroom` widens
the observed range. No scale is zero, or a layer that saw only zeros would divide by it.

Shape suffixes: S samples, K key and value heads, L tokens, H head width.

Sources: vllm model_executor/layers/quantization/kv_cache.py at 0531c22;
compressed-tensors 0.19.0, modeling/kvcache.py, quantization/lifecycle/initialize.py
`initialize_attn_qparams`, quantization/utils/helpers.py `calculate_qparams`;
TensorRT-LLM, tensorrt_llm/models/llama/convert.py (`int8_kv_scales`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from lmi_build.numerics.fp8 import FP8_MAX, cast_fp8

# Steps that a reader spreads a largest magnitude over.
INT8_STEPS = 127.0
# Smallest usable scale, as for weights stored in float16.
MIN_SCALE = 2.0**-20


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheScales:
    """
    Scales of one layer's cache.

    Args:
        key: float32, [1] for the layer or [K] per head.
        value: float32, the same.
    """

    key: Tensor
    value: Tensor

    @property
    def shared(self) -> Tensor:
        """One scale [1] that serves keys and values, as TensorRT-LLM wants it."""
        return torch.maximum(self.key.amax(), self.value.amax()).reshape(1)


class CacheObserver:
    """
    Largest magnitudes of a layer's keys and values.

    Args:
        num_heads: Key and value heads K.
        device: Where they are computed.
    """

    def __init__(self, num_heads: int, *, device: str | torch.device = "cpu") -> None:
        self._lock = threading.Lock()
        self.key_absmax_K = torch.zeros(num_heads, device=device)
        self.value_absmax_K = torch.zeros(num_heads, device=device)

    def add(self, key_SKLH: Tensor, value_SKLH: Tensor) -> None:
        """Add the keys, rotated, and the values of a chunk; from any thread."""
        for seen_K, x_SKLH in (
            (self.key_absmax_K, key_SKLH),
            (self.value_absmax_K, value_SKLH),
        ):
            peak_K = x_SKLH.abs().amax(dim=(0, 2, 3)).to(torch.float32)
            with self._lock:
                torch.maximum(seen_K, peak_K, out=seen_K)

    def is_finite(self) -> bool:
        """Whether every key and value so far was a number."""
        both = torch.cat((self.key_absmax_K, self.value_absmax_K))
        return bool(torch.isfinite(both).all())

    def scales(
        self, dtype: str, *, per_head: bool = False, headroom: float = 1.0
    ) -> CacheScales:
        """
        The scales for what was seen.

        Args:
            dtype: `int8` or `fp8`.
            per_head: One scale per head instead of one per layer.
            headroom: Factor on the observed range, at least 1.
        """
        key_K, value_K = self.key_absmax_K, self.value_absmax_K
        if not per_head:
            key_K, value_K = key_K.amax().reshape(1), value_K.amax().reshape(1)
        return CacheScales(
            key=cache_scale(key_K * headroom, dtype),
            value=cache_scale(value_K * headroom, dtype),
        )


def cache_scale(absmax: Tensor, dtype: str) -> Tensor:
    """
    The scale for a largest magnitude.

    Args:
        absmax: Largest magnitudes, finite.
        dtype: `int8` or `fp8`.

    Returns:
        float32 scales above zero.

    Raises:
        ValueError: Another dtype.
    """
    if dtype not in {"int8", "fp8"}:
        raise ValueError(f"a cache is int8 or fp8, not {dtype}")
    steps = INT8_STEPS if dtype == "int8" else FP8_MAX
    return (absmax.to(torch.float32) / steps).clamp_min(MIN_SCALE)


def fake_quantize_cache(x_SKLH: Tensor, scale: Tensor, dtype: str) -> Tensor:
    """
    Keys or values as they come back from the cache.

    Args:
        x_SKLH: Keys or values.
        scale: [1] or [K].
        dtype: `int8` or `fp8`.

    Returns:
        float32 of the same shape.
    """
    scale_K11 = scale.view(-1, 1, 1)
    ratio = x_SKLH.to(torch.float32) / scale_K11
    if dtype == "fp8":
        return cast_fp8(ratio).to(torch.float32) * scale_K11
    return ratio.clamp_(-128, 127).round_() * scale_K11
