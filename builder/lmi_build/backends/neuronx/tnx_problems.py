"""
Why Transformers NeuronX cannot be told what a recipe says, by dotted path.

It takes most of it in silence: it ignores, falls back, or fails when the endpoint
starts. What it would do is computed here, before a graph is compiled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.buckets import serial_tokens
from lmi_build.backends.neuronx.heads import TILE, head_problems
from lmi_build.backends.neuronx.memory import core_memory
from lmi_build.backends.neuronx.models import model_problems
from lmi_build.backends.neuronx.presharded import presharded_problems
from lmi_build.backends.neuronx.signatures import neuron_config_fields
from lmi_build.backends.neuronx.tnx import WORKERS
from lmi_build.backends.neuronx.tnx_classes import class_problems
from lmi_build.backends.neuronx.tnx_request import (
    AMPS,
    BSH,
    given_buckets,
    shape_of,
    tnx_core_memory,
)
from lmi_build.backends.neuronx.topology import (
    core_memory_bytes,
    legal_sizes,
    topology_problems,
)
from lmi_build.backends.problems import refused
from lmi_build.errors import Problem
from lmi_build.text import join_words
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.neuronx.tnx_request import TnxRequest

_CORES = "compile.tensor_parallel_size"
_BUCKETS = "compile.options.context_buckets"
# More parts of the sequence than this are refused: `LlamaForSampling`, 0.12 and 0.13.
_SEQUENCE_PARTS = 128
# Versions whose `LlamaForSampling` adds the fused MLP's output without its weight.
_NO_FUSED_MLP = ("0.13",)


def tnx_problems(request: TnxRequest) -> Iterator[Problem]:
    """
    Every reason why a decoder cannot be compiled for LMI's loader.

    Names and values of options are checked in `options`, positions and quantization
    where every backend has them checked.

    Args:
        request: What is compiled; its release has the loader `tnx`.
    """
    problems = [*model_problems(request.model_type, "tnx", request.release)]
    problems += _dtype_problems(request)
    problems += topology_problems(request.instance, request.tensor_parallel_size)
    yield from problems
    if problems:
        return
    problems += _batch_problems(request)
    problems += _bucket_problems(request)
    problems += class_problems(request)
    problems += _layout_problems(request)
    problems += _head_problems(request)
    problems += _memory_problems(request)
    yield from problems
    # What else is wrong may be what makes heads repeat as they do.
    if not problems and request.release.layout == "presharded":
        yield from presharded_problems(
            shape_of(request).head_terms,
            shard_over_sequence=bool(request.options.get("shard_over_sequence")),
        )


def _dtype_problems(request: TnxRequest) -> Iterator[Problem]:
    if request.dtype not in AMPS:
        yield Problem(
            code="neuronx.dtype",
            message=f"weights are {request.dtype}; Transformers NeuronX computes in"
            f" {join_words(tuple(AMPS))}",
            path="model.dtype",
            hint="write `dtype: bfloat16`",
        )


def _batch_problems(request: TnxRequest) -> Iterator[Problem]:
    bounds, loader = request.bounds, request.loader
    if bounds.max_beam_width > 1:
        yield Problem(
            code="neuronx.beams",
            message=f"graphs are compiled for one beam, `max_beam_width` is"
            f" {bounds.max_beam_width}",
            path="bounds.max_beam_width",
            hint="remove the line, or write `max_beam_width: 1`",
            unsupported=True,
        )
    if bounds.max_num_tokens is not None:
        yield Problem(
            code="neuronx.num-tokens",
            message="there is no packed pass whose size `max_num_tokens` could bound:"
            " graphs have one length of prompt and one batch each",
            path="bounds.max_num_tokens",
            hint="remove the line",
        )
    if loader.continuous_only and not request.continuous:
        names = join_words(loader.continuous_models, last="and")
        yield Problem(
            code="neuronx.continuous",
            message=f"`{request.release.name}` batches every model continuously, which"
            f" its Transformers NeuronX has for {names} only",
            path="compile.release",
            hint="set a newer `compile.release`, or remove the line",
            unsupported=True,
        )


def _bucket_problems(request: TnxRequest) -> Iterator[Problem]:
    given, longest = given_buckets(request), request.bounds.max_input_len
    if not given:
        return
    whole = request.n_positions
    if not request.takes_contexts or (request.whole_prompts and given != (whole,)):
        yield Problem(
            code="neuronx.context-bucket",
            message=f"`{request.release.name}` takes no list of context buckets here:"
            f" {_why_whole(request)}",
            path=_BUCKETS,
            hint="remove the line",
        )
    elif given[-1] > whole:
        yield Problem(
            code="neuronx.context-bucket",
            message=f"a context bucket of {given[-1]} is longer than prompt and output"
            f" together, {whole}",
            path=_BUCKETS,
            hint=f"write {longest} for {given[-1]}, or remove the line",
        )
    elif rest := serial_tokens(given, longest):
        yield Problem(
            code="neuronx.context-bucket",
            message=f"the largest context bucket is {given[-1]}: of a prompt of"
            f" {longest} tokens the last {rest} would be computed one by one",
            path=_BUCKETS,
            hint=f"add {longest} to the list, or remove the line",
        )


def _why_whole(request: TnxRequest) -> str:
    if not request.takes_contexts:
        return f"the class that it loads `{request.model_type}` with has no prefill"
    if request.loader.context == "whole":
        return f"with continuous batching it has one, of {request.n_positions} tokens"
    return f"with the cache layout `BSH` it has one, of {request.n_positions} tokens"


def _layout_problems(request: TnxRequest) -> Iterator[Problem]:
    """Options that suit some sizes only."""
    if request.options.get("cache_layout") == BSH and not request.continuous:
        yield Problem(
            code="neuronx.cache-layout",
            message="the cache layout `BSH` needs continuous batching, which"
            f" `{request.release.name}` has for"
            f" {join_words(request.loader.continuous_models, last='and')} from a batch"
            f" of {request.loader.continuous_from} on",
            path="compile.options.cache_layout",
            hint="remove the line",
        )
    if request.model.hsb_only and request.options.get("attention_layout") == BSH:
        yield Problem(
            code="neuronx.attention-layout",
            message=f"attention of `{request.model_type}` has the layout `HSB` alone",
            path="compile.options.attention_layout",
            hint="remove the line",
        )
    if request.on("weight_tiling") or request.on("qkv_tiling"):
        yield from _tiling_problems(request)
    if request.on("fuse_mlp"):
        yield from _fused_mlp_problems(request)
    if request.on("shard_over_sequence"):
        yield from _sequence_problems(request)
    workers = WORKERS in neuron_config_fields(request.release.tnx_row)
    if WORKERS in request.options and not workers:
        yield Problem(
            code="neuronx.workers",
            message=f"transformers-neuronx {request.release.transformers_neuronx}"
            " compiles all graphs at once; nothing holds it back",
            path=f"compile.options.{WORKERS}",
            hint="remove the line",
        )


def _tiling_problems(request: TnxRequest) -> Iterator[Problem]:
    """Tiles are whole: 128 rows and 128 columns on each core."""
    hidden, tp = request.geometry.hidden_size, request.tensor_parallel_size
    name = "weight_tiling" if request.on("weight_tiling") else "qkv_tiling"
    path = f"compile.options.{name}"
    if hidden % TILE:
        yield Problem(
            code="neuronx.tiling",
            message=f"`{name}` cuts weights into tiles of {TILE}; the hidden size is"
            f" {hidden}",
            path=path,
            hint="remove the line",
        )
        return
    fused = request.on("weight_tiling") and request.on("fuse_mlp")
    if fused and request.geometry.intermediate_size // tp % TILE:
        yield Problem(
            code="neuronx.tiling",
            message=f"`weight_tiling` cuts weights into tiles of {TILE}, and `fuse_mlp`"
            " keeps the MLP from being padded to them",
            path="compile.options.weight_tiling",
            hint="remove one of the two lines",
        )
    width = shape_of(request).heads.kv_width // tp
    if request.on("qkv_tiling") and width * 2 % TILE:
        yield Problem(
            code="neuronx.tiling",
            message=f"`qkv_tiling` cuts weights into tiles of {TILE}; keys and values"
            f" of one core are {2 * width} columns",
            path="compile.options.qkv_tiling",
            hint="remove the line",
        )


def _fused_mlp_problems(request: TnxRequest) -> Iterator[Problem]:
    path = "compile.options.fuse_mlp"
    width, tp = request.geometry.intermediate_size, request.tensor_parallel_size
    if request.release.tnx_row in _NO_FUSED_MLP:
        yield refused(
            "neuronx.fused-mlp",
            f"`fuse_mlp` of transformers-neuronx {request.release.transformers_neuronx}"
            " fails without `mlp_out_weight_transpose`, which LMI does not pass on",
            path,
            "remove the line",
        )
    elif width % tp:
        yield Problem(
            code="neuronx.fused-mlp",
            message=f"`fuse_mlp` splits {width} columns over {tp} cores, which does not"
            " come out even",
            path=path,
            hint="remove the line",
        )


def _sequence_problems(request: TnxRequest) -> Iterator[Problem]:
    """The cache split along the sequence, as `shard_over_sequence` does."""
    path = "compile.options.shard_over_sequence"
    geometry, tp = request.geometry, request.tensor_parallel_size
    heads, kv_heads = geometry.num_attention_heads, geometry.num_key_value_heads
    shape = shape_of(request)
    parts, positions = max(1, shape.memory.sequence_shards), shape.tokens[-1]
    if not request.model.shards_sequence:
        message = f"the class for `{request.model_type}` does not split the sequence"
    elif heads == kv_heads:
        message = "every query head has its own key head: the library would not split"
    elif request.options.get("cache_layout") == BSH:
        message = "the sequence is split in the cache layout `SBH` alone"
    elif tp % kv_heads or tp // kv_heads > _SEQUENCE_PARTS:
        message = f"{tp} cores are no multiple of {kv_heads} key heads"
    elif positions % parts:
        message = (
            f"the cache holds {positions} positions, 128 more than promised, which"
            f" {parts} cores cannot share"
        )
    else:
        return
    yield Problem(
        code="neuronx.shard-over-sequence",
        message=message,
        path=path,
        hint="remove the line",
    )


def _head_problems(request: TnxRequest) -> Iterator[Problem]:
    layout = request.options.get("cache_layout")
    yield from head_problems(
        shape_of(request).head_terms,
        cache_layout=layout if isinstance(layout, str) else "SBH",
    )


def _memory_problems(request: TnxRequest) -> Iterator[Problem]:
    """Whether a core holds its part; weights and cache alone decide."""
    core, room = tnx_core_memory(request), core_memory_bytes(request.instance)
    if core.weight_bytes + core.cache_bytes <= room:
        return
    yield Problem(
        code="neuronx.core-memory",
        message=f"each of {request.tensor_parallel_size} cores would hold"
        f" {format_bytes(core.weight_bytes)} of weights and"
        f" {format_bytes(core.cache_bytes)} of cache, it has {format_bytes(room)}",
        path=_CORES,
        hint=_what_fits(request, room),
    )


def _what_fits(request: TnxRequest, room: int) -> str:
    """More cores, 8 bits or a smaller batch, whichever does it first."""
    for size in legal_sizes(request.instance):
        if size > request.tensor_parallel_size and _fits(
            replace(request, tensor_parallel_size=size), room
        ):
            return f"set `tensor_parallel_size: {size}`"
    if not request.int8 and _fits(replace(request, int8=True), room):
        return "set `quantize.method: int8`"
    batch = request.bounds.max_batch_size // 2
    while batch:
        bounds = replace(request.bounds, max_batch_size=batch)
        if _fits(replace(request, bounds=bounds), room):
            return f"set `bounds.max_batch_size: {batch}`"
        batch //= 2
    return "set a larger `compile.target`"


def _fits(request: TnxRequest, room: int) -> bool:
    core = core_memory(shape_of(request).memory)
    return core.weight_bytes + core.cache_bytes <= room
