"""
Quantized Hugging Face folders that TensorRT-LLM's PyTorch backend loads.

It reads what NVIDIA's Model Optimizer writes, by `quant_algo`; of the formats that
tools of Hugging Face write, it reads none before 1.3. What our quantizers make has the
same numbers in another order wherever the algorithm is one it knows, so it is laid out
anew without rounding, or refused here with the way out.

A row of `hf_quantized.toml` is one algorithm:

| field | says |
| --- | --- |
| since | first release of TensorRT-LLM that reads it |
| weight_dtype, bits, grouping, group_sizes, activations | which schemes it can say |
| capability | least and greatest compute capability that has kernels |
| tensor_parallel_since | first release that loads it split over GPUs |
| fused | `rescaled`: the loader rounds q, k, v and gate, up to a common scale |
| scales_in_model_dtype | the loader rounds scales to the model's dtype |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm import PACKAGE
from lmi_build.catalog.tables import read_rows
from lmi_build.errors import Problem
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.spi import Params
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme

FILE = "hf_quantized.toml"
ENTRY = "lmi_build.backends.trtllm.hf_quantized_worker:run"
# Bumped when the worker writes other bytes for the same parameters.
SALT = 1
# `quant_algo` of a float model: it has no hf_quant_config.json.
FLOAT = ""
RESCALED = "rescaled"
_CODE = "compile.hf-format"
_VERSION = re.compile(r"(\d+)\.(\d+)")
_EXPERTS = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class HfFormat:
    """
    One `quant_algo` that the PyTorch backend reads; see the module's table.

    Args:
        since: Release of TensorRT-LLM, major and minor.
        weight_dtype: `int` or `float`.
        bits: Of one weight.
        grouping: What shares a scale: `group`, `channel` or `tensor`.
        activations: Of `QuantScheme.activation_scheme`.
        capability: Least and greatest.
        source: Where it was read.
        group_sizes: Input channels per scale; empty without groups.
        tensor_parallel_since: Empty where it always was.
        fused: `rescaled` or empty.
        scales_in_model_dtype: Whether the loader narrows scales.
    """

    since: str
    weight_dtype: str
    bits: tuple[int, ...]
    grouping: tuple[str, ...]
    activations: tuple[str, ...]
    capability: tuple[str, ...]
    source: str
    group_sizes: tuple[int, ...] = ()
    tensor_parallel_since: str = ""
    fused: str = ""
    scales_in_model_dtype: bool = False


@cache
def hf_formats() -> Mapping[str, HfFormat]:
    """
    Every algorithm of the table.

    Raises:
        ValueError: The table is wrong; a fault of the package.
    """
    return read_rows(HfFormat, FILE, package=PACKAGE)


def readable(trtllm: str) -> Mapping[str, HfFormat]:
    """
    What one release reads.

    Args:
        trtllm: Such as `0.21.0rc1`.
    """
    return {
        name: row
        for name, row in hf_formats().items()
        if _version(trtllm) >= _version(row.since)
    }


def quant_algo(scheme: QuantScheme) -> str | None:
    """
    The algorithm that says a scheme's numbers, or None.

    Args:
        scheme: Of the checkpoint, whatever its packing.

    Returns:
        A key of `hf_formats`, or `FLOAT` for a model that is not quantized.
    """
    if scheme.packing == "none":
        return FLOAT
    grouping = _grouping(scheme)
    for name, row in hf_formats().items():
        if (
            scheme.weight_dtype == row.weight_dtype
            and scheme.weight_bits in row.bits
            and grouping in row.grouping
            and scheme.activation_scheme in row.activations
            and (not row.group_sizes or scheme.group_size in row.group_sizes)
            and scheme.sym
            and not scheme.act_order
        ):
            return name
    return None


def _grouping(scheme: QuantScheme) -> str:
    return scheme.granularity if scheme.group_size == -1 else "group"


def hf_quantized_problems(
    scheme: QuantScheme,
    model: ModelFacts,
    *,
    trtllm: str,
    capability: str,
    tensor_parallel_size: int,
) -> Iterator[Problem]:
    """
    Yield why a checkpoint cannot become such a folder, by dotted recipe path.

    Args:
        scheme: What the quantizer makes, or what the source is.
        model: The pinned model, for its experts.
        trtllm: Release of TensorRT-LLM.
        capability: Compute capability of the target's GPU, or empty where unknown.
        tensor_parallel_size: GPUs that share each layer.
    """
    if scheme.kv_cache_dtype == "int8":
        yield _problem(
            "TensorRT-LLM's PyTorch backend has no int8 cache of keys and values",
            "quantize.kv_cache_dtype",
            "use `fp8` or `auto`",
        )
    algo = quant_algo(scheme)
    if algo is None:
        yield _unspeakable(scheme, trtllm)
    elif algo != FLOAT:
        yield from _row_problems(
            algo,
            model,
            trtllm=trtllm,
            capability=capability,
            tensor_parallel_size=tensor_parallel_size,
        )


def _problem(message: str, path: str, hint: str) -> Problem:
    return Problem(code=_CODE, message=message, path=path, hint=hint, unsupported=True)


def _unspeakable(scheme: QuantScheme, trtllm: str) -> Problem:
    """Why no algorithm says a scheme: the first thing in the way, with the fix."""
    what, path, hint = _in_the_way(scheme)
    names = join_words(sorted(readable(trtllm)))
    return _problem(
        f"TensorRT-LLM {trtllm}'s PyTorch backend does not read {what}; it reads"
        f" {names}",
        path,
        hint,
    )


def _in_the_way(scheme: QuantScheme) -> tuple[str, str, str]:
    four = "`bits: 4`, `group_size: 128`, `sym: true`, `activations: none`"
    if scheme.weight_dtype == "float":
        if _grouping(scheme) == "channel":
            return (
                f"fp8 rows with {scheme.activation_scheme} activations",
                "quantize.activations",
                "use `activations: dynamic`, or `granularity: tensor`",
            )
        return (
            "fp8 weights without fp8 activations",
            "quantize.activations",
            "use `activations: static` or `dynamic`",
        )
    if scheme.activation_scheme != "none":
        return (
            "int8 weights with int8 activations (SmoothQuant)",
            "quantize.method",
            "use `method: fp8`, or an engine of an older release",
        )
    if scheme.act_order:
        return (
            "channels in activation order",
            "model.source",
            "quantize the float model; our groups lie in order",
        )
    if not scheme.sym:
        return "zero points", "quantize.sym", "set `sym: true`"
    if scheme.weight_bits == 4:  # noqa: PLR2004 - the one width with groups
        return (
            f"4-bit groups of {scheme.group_size}",
            "quantize.group_size",
            "use `group_size: 128` or `64`",
        )
    if scheme.weight_bits == 8:  # noqa: PLR2004
        return (
            f"8-bit groups of {scheme.group_size}",
            "quantize.group_size",
            f"use `group_size: -1`, or {four}",
        )
    return f"{scheme.weight_bits}-bit weights", "quantize.bits", f"use {four}"


def _row_problems(
    algo: str,
    model: ModelFacts,
    *,
    trtllm: str,
    capability: str,
    tensor_parallel_size: int,
) -> Iterator[Problem]:
    row = hf_formats()[algo]
    if algo not in readable(trtllm):
        others = join_words(sorted(readable(trtllm)))
        yield _problem(
            f"TensorRT-LLM {trtllm}'s PyTorch backend does not read {algo}, which came"
            f" with {row.since}; it reads {others}",
            "compile.release",
            _older_way_out(algo, row.since, capability),
        )
    least, most = row.capability
    if capability and not _version(least) <= _version(capability) <= _version(most):
        yield _problem(
            f"{algo} has kernels for compute capability {least} to {most}, the"
            f" target's is {capability}",
            "compile.target",
            f"choose an instance with a GPU of {least} to {most}, or another method",
        )
    since = row.tensor_parallel_since
    if tensor_parallel_size > 1 and since and _version(trtllm) < _version(since):
        yield _problem(
            f"TensorRT-LLM {trtllm} cannot load {algo} over {tensor_parallel_size}"
            f" GPUs: it does not cut the scales of q, k and v before {since}",
            "compile.tensor_parallel_size",
            f"use release {since}, or `tensor_parallel_size: 1`",
        )
    if any(_EXPERTS.search(tensor.name) for tensor in model.tensors):
        yield _problem(
            f"{algo} is not written for mixtures of experts, whose layers TensorRT-LLM"
            " loads by code of their own",
            "quantize.method",
            "set `method: none`",
        )


def _older_way_out(algo: str, since: str, capability: str) -> str:
    """What this release, or this GPU, can do instead."""
    least = hf_formats()["FP8"].capability[0]
    if capability and _version(capability) < _version(least):
        return f"use `artifact: engine`, or release {since} or later"
    if algo == "FP8_PER_CHANNEL_PER_TOKEN":
        return f"use `granularity: tensor`, or release {since} or later"
    return f"use release {since} or later, or `method: fp8` with `granularity: tensor`"


def hf_quantized_params(scheme: QuantScheme) -> Params:
    """
    Parameters of the worker.

    Args:
        scheme: One that has no problems.

    Raises:
        ValueError: No algorithm says it: `hf_quantized_problems` was not asked.
    """
    algo = quant_algo(scheme)
    if algo is None:
        raise ValueError(f"no quant_algo for {scheme}")
    return {"quant_algo": algo, "packing": scheme.packing}


def _version(text: str) -> tuple[int, int]:
    match = _VERSION.match(text)
    if match is None:
        raise ValueError(f"`{text}` is no version")
    return int(match[1]), int(match[2])
