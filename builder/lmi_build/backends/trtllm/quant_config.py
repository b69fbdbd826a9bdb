"""
The `quantization` section of a checkpoint's config.json, as each release reads it.

`QuantConfig` is a dataclass made from the section as keyword arguments, so a key that a
release does not know stops the build. Written are only keys that all of them have:
`quant_algo`, `kv_cache_quant_algo`, and for W4A16_AWQ `group_size`, `has_zero_point`,
`pre_quant_scale`. Two things differ:

- 0.8 asks for `sq_use_plugin` where `quant_algo` ends with `_PLUGIN`; 0.9 sees it from
  the name and has no such key.
- `exclude_modules`, what stays in float, replaces a list of the release's own: names or
  parts of names up to 0.10, patterns since 0.11. It is written only where more than the
  usual stays in float, as patterns of all that must; with less, the embedding would
  count as quantized. SmoothQuant's plugins do not look at it.

A cache of FP8 keys and values is given the scale 1.0 by 0.8 to 0.14, whatever the
checkpoint says.

Sources: TensorRT-LLM 0.8.0 models/modeling_utils.py `PretrainedConfig.from_dict`,
0.9.0 to 0.16 `QuantConfig`; quantization/quantize.py `quantize_layers`;
models/convert_utils.py `weight_only_quantize_dict`, which matches the same patterns
with names of tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.digest import JSONValue

AWQ = "W4A16_AWQ"
# SmoothQuant by its plugins, and as a network of plain operations.
PER_TOKEN = frozenset(
    {"W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN"}
)
PER_TENSOR = frozenset(
    {"W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_TENSOR_PLUGIN"}
)
PLUGINS = PER_TOKEN | PER_TENSOR | {"W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"}
PLAIN = "W8A8_SQ_PER_CHANNEL"
CACHE = {"auto": None, "int8": "INT8", "fp8": "FP8"}
# The last release that is told about plugins apart from the algorithm's name.
PLUGIN_KEY_UNTIL = (0, 8)
# The first whose `exclude_modules` are patterns of whole names.
PATTERNS_SINCE = (0, 11)
# What stays in float without being said, in any release.
ALWAYS_FLOAT = (
    "*lm_head*",
    "*router*",
    "*vocab_embedding*",
    "*position_embedding*",
    "*block_embedding*",
    "*shared_expert_gate*",
)


def release_of(trtllm: str) -> tuple[int, int]:
    """Major and minor of a version such as `0.21.0rc1`."""
    major, minor = trtllm.split(".")[:2]
    return int(major), int(minor)


def quant_config(
    algorithm: str,
    *,
    trtllm: str,
    group_size: int = -1,
    zero_points: bool = False,
    kv_cache_dtype: str = "auto",
    float_modules: Sequence[str] = (),
) -> dict[str, JSONValue]:
    """
    The section for one checkpoint.

    Args:
        algorithm: `quant_algo`, or `""` where weights are float.
        trtllm: Version that will read it.
        group_size: Inputs per scale, for W4A16_AWQ.
        zero_points: Whether the linears come with `zero`, for W4A16_AWQ.
        kv_cache_dtype: `auto`, `int8` or `fp8`.
        float_modules: TensorRT-LLM names of linears that stay in float although others
            like them do not; never `lm_head` or routers.

    Raises:
        ValueError: `float_modules` that this algorithm or release cannot leave out; ask
            `exclusion_problem` first.
    """
    problem = exclusion_problem(algorithm, trtllm=trtllm, float_modules=float_modules)
    if problem:
        raise ValueError(problem)
    section: dict[str, JSONValue] = {
        "quant_algo": algorithm or None,
        "kv_cache_quant_algo": CACHE[kv_cache_dtype],
    }
    if algorithm == AWQ:
        section["group_size"] = group_size
        section["has_zero_point"] = zero_points
        section["pre_quant_scale"] = False
    if algorithm in PLUGINS and release_of(trtllm) <= PLUGIN_KEY_UNTIL:
        section["sq_use_plugin"] = True
    if algorithm and float_modules:
        # A star behind a name lets it match the linear and its tensors.
        section["exclude_modules"] = [
            *ALWAYS_FLOAT,
            *(f"{name}*" for name in float_modules),
        ]
    return section


def exclusion_problem(
    algorithm: str, *, trtllm: str, float_modules: Sequence[str]
) -> str:
    """Why these linears cannot stay in float, or nothing."""
    if not algorithm or not float_modules:
        return ""
    if algorithm in PLUGINS:
        return (
            f"{algorithm} quantizes every linear of a layer, and"
            f" `{float_modules[0]}` is float"
        )
    if release_of(trtllm) < PATTERNS_SINCE:
        major, minor = PATTERNS_SINCE
        return (
            f"TensorRT-LLM {trtllm} cannot leave single linears in float, such as"
            f" `{float_modules[0]}`; {major}.{minor} can"
        )
    return ""


def reads_cache_scale(kv_cache_dtype: str, *, trtllm: str) -> bool:
    """Whether a release uses the scale of the cache that a checkpoint gives it."""
    return kv_cache_dtype == "int8" or release_of(trtllm) > (0, 14)
