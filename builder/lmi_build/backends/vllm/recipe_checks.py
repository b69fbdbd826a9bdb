"""Every reason why a recipe cannot be served by vLLM in an image, by dotted path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.problems import refused
from lmi_build.backends.vllm.bounds import bound_problems
from lmi_build.backends.vllm.documents import config_problem
from lmi_build.backends.vllm.kernels import (
    candidates,
    kernels,
    misfit,
    version_key,
)
from lmi_build.backends.vllm.linears import device_sizes, quantized_linears
from lmi_build.backends.vllm.memory import choose_share
from lmi_build.backends.vllm.models import architectures, first_version
from lmi_build.backends.vllm.options import (
    compile_option_problems,
    serve_option_problems,
)
from lmi_build.catalog.vllm_releases import vllm_releases
from lmi_build.text import join_words
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.vllm.kernels import Kernel, Sizes
    from lmi_build.backends.vllm.target import Target
    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

# Formats that the other libraries of the images read.
_READS = {"transformers": ("none", "gptq", "awq"), "deepspeed": ("none",)}
_WIDE = ("float32", "float64")
# The scheduler that has models which are not vLLM's.
_OTHER_MODELS = "lmi-dist"
# Formats for which vLLM has a place for scales of the cache.
_CACHE_SCALES = ("int-quantized", "float-quantized", "pack-quantized")


def float_dtype(recipe: Recipe, model: ModelFacts) -> str:
    """
    What the image computes in.

    The recipe's, else the model's; kernels of GPUs take wide ones in 16 bits, as vLLM
    does by itself.
    """
    chosen = recipe.compile.options.get("dtype")
    if isinstance(chosen, str):
        return chosen
    return "float16" if model.dtype in _WIDE else model.dtype


def recipe_problems(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Iterator[Problem]:
    """Of everything but the target itself."""
    if target.handler.library == "vllm" and (fault := _unknown_model(model, target)):
        yield fault
        return
    options = recipe.serve.options
    faults = [
        *compile_option_problems(recipe.compile.options),
        *serve_option_problems(options, target.handler),
    ]
    yield from faults
    chunked = options.get("enable_chunked_prefill")
    yield from bound_problems(
        recipe.bounds,
        target,
        chunked=chunked if isinstance(chunked, bool) else None,
    )
    yield from _split_problems(recipe, model, target)
    if fault := config_problem(model.config, transformers=target.release.transformers):
        yield fault
    if faults:
        return
    yield from _format_problems(recipe, model, scheme, target)
    yield from _cache_problems(scheme, target)
    if target.handler.library == "vllm":
        yield from _memory_problems(recipe, model, scheme, target)


def _unknown_model(model: ModelFacts, target: Target) -> Problem | None:
    """A model that the image's vLLM has no class for; it would end its start."""
    name = model.geometry.architecture
    version = target.release.computes_with(target.handler)
    known = architectures(version)
    if name in known or name in target.handler.beside:
        return None
    message = f"vLLM {version} of `{target.release.name}` has no model for `{name}`"
    if release := _release_beside(name, target):
        return refused(
            "vllm.architecture",
            f"{message}; LMI-Dist of `{release}` has one of its own",
            "serve.rolling_batch",
            f"write `rolling_batch: {_OTHER_MODELS}` and `release: {release}`",
        )
    first = first_version(name)
    came = version_key(first) > version_key(version) if first else False
    return refused(
        "vllm.architecture",
        message,
        "model.source",
        f"choose a release with vLLM {first} or later, which has it"
        if came
        else f"vLLM {version} has {join_words(known, last='and')}",
    )


def _release_beside(name: str, target: Target) -> str | None:
    """The image, this one or the newest, whose LMI-Dist has a model of its own."""
    for row in (target.release, *vllm_releases().values()):
        handler = row.handler(_OTHER_MODELS)
        if row.published and handler is not None and name in handler.beside:
            return row.name
    return None


def _split_problems(
    recipe: Recipe, model: ModelFacts, target: Target
) -> Iterator[Problem]:
    """Whether devices can share the model as asked."""
    spec, geometry = recipe.compile, model.geometry
    if spec.pipeline_parallel_size > 1 and not target.handler.pipeline_parallel:
        yield refused(
            "vllm.pipeline",
            f"the handler `{target.handler.name}` of `{target.release.name}` refuses"
            f" {spec.pipeline_parallel_size} pipeline stages",
            "compile.pipeline_parallel_size",
            f"write `pipeline_parallel_size: 1` and `tensor_parallel_size:"
            f" {spec.tensor_parallel_size * spec.pipeline_parallel_size}`",
        )
    tp = spec.tensor_parallel_size
    heads, groups = geometry.num_attention_heads, geometry.num_key_value_heads
    even = groups % tp == 0 if groups >= tp else tp % groups == 0
    if heads % tp or not even:
        fitting = [
            size
            for size in range(1, tp)
            if not heads % size and not (groups % size and size % groups)
        ]
        yield refused(
            "vllm.heads",
            f"{tp} devices cannot share {heads} heads with {groups} of keys and values"
            " evenly",
            "compile.tensor_parallel_size",
            f"write `tensor_parallel_size: {fitting[-1]}`",
        )


def _format_problems(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Iterator[Problem]:
    """Whether the image has a kernel for the weights as they lie."""
    library = target.handler.library
    if library != "vllm":
        if scheme.packing not in _READS[library]:
            yield refused(
                "vllm.format",
                f"the handler `{target.handler.name}` loads weights through {library},"
                f" which does not read `{scheme.packing}`",
                _format_path(recipe),
                f"use {join_words(_READS[library])} weights, or `rolling_batch: auto`",
            )
        return
    if scheme.packing == "none":
        return
    if (name := model.geometry.architecture) in target.handler.beside:
        yield refused(
            "vllm.format",
            f"LMI-Dist computes `{name}` without vLLM's models, in float alone as far"
            f" as its guide says, not with {scheme.packing} weights",
            _format_path(recipe),
            "use the float model and `method: none`",
        )
        return
    found = list(_rows(scheme, target))
    if not found:
        yield _no_kernel(recipe, scheme, target)
        return
    dtype = float_dtype(recipe, model)
    name = next((name for name, row in found if dtype in row.dtypes), "")
    first = found[0][1]
    if not name:
        yield refused(
            "vllm.dtype",
            f"vLLM {target.vllm} computes these {scheme.packing} weights in"
            f" {join_words(first.dtypes)}, not in {dtype}",
            "compile.options.dtype",
            f"write `dtype: {first.dtypes[0]}`",
        )
        return
    yield from _size_problems(recipe, model, scheme, target, dtype=dtype, name=name)


def _rows(scheme: QuantScheme, target: Target) -> Iterator[tuple[str, Kernel]]:
    return candidates(
        scheme, vllm=target.vllm, capability=target.instance.compute_capability
    )


def _no_kernel(recipe: Recipe, scheme: QuantScheme, target: Target) -> Problem:
    """What stands in the way: the version, the GPU, or the numbers themselves."""
    capability = target.instance.compute_capability
    told = [row for row in kernels().values() if scheme.packing in row.packings]
    held = [row for row in told if row.holds(scheme)]
    what = f"{scheme.weight_bits}-bit {scheme.packing} weights"
    if scheme.activation_scheme != "none":
        what += f" with {scheme.activation_scheme} activations"
    if scheme.group_size != -1:
        what += f" in groups of {scheme.group_size}"
    if not scheme.sym:
        what += " with zero points"
    here = [row for row in held if row.in_version(target.vllm)]
    if not held:
        return refused(
            "vllm.format",
            f"no vLLM of the catalogue has kernels for {what}",
            _format_path(recipe),
            _other_format(scheme),
        )
    if not here:
        since = min((row.since for row in held), key=version_key)
        return refused(
            "vllm.format",
            f"vLLM {target.vllm} of `{target.release.name}` has no kernels for {what};"
            f" they came with {since}",
            "compile.release",
            "use a newer release; the newest is taken where the line is absent",
        )
    least, most = here[0].capability
    return refused(
        "vllm.format",
        f"vLLM {target.vllm} has kernels for {what} on compute capability {least} to"
        f" {most}; the GPU of `{target.instance.name}` has {capability}",
        "compile.target",
        "choose an instance with such a GPU, or another method",
    )


def _other_format(scheme: QuantScheme) -> str:
    """The same numbers, or near ones, where a kernel takes them."""
    if scheme.packing == "int-quantized" and scheme.activation_scheme == "none":
        return "write `format: gptq`, which holds the same 8-bit rows"
    if not scheme.sym:
        return "write `sym: true`"
    if scheme.act_order:
        return "quantize the float model; our groups lie in order"
    return "use `group_size: 128` or `64` and 4 or 8 bits"


def _size_problems(
    recipe: Recipe,
    model: ModelFacts,
    scheme: QuantScheme,
    target: Target,
    *,
    dtype: str,
    name: str,
) -> Iterator[Problem]:
    """Whether every linear has sizes that the kernel takes."""
    tp, row = recipe.compile.tensor_parallel_size, kernels()[name]
    linears = quantized_linears(recipe, model, scheme)

    def first(devices: int, kind: str) -> Sizes | None:
        sizes = device_sizes(linears, model.geometry, devices)
        return misfit(row, scheme, sizes, vllm=target.vllm, dtype=kind)

    wrong = first(tp, dtype)
    if wrong is None:
        return
    on = f" on each of {tp} devices" if tp > 1 else ""
    message = (
        f"vLLM {target.vllm} has no kernel for `{wrong.name}` with"
        f" {wrong.num_inputs} inputs and {wrong.num_outputs} outputs{on}: `{name}`"
        f" takes multiples of {row.inputs} and {row.outputs}"
    )
    if scheme.group_size != -1:
        message += f", and of the group of {scheme.group_size}"
    if dtype != "float16" and first(tp, "float16") is None:
        path, hint = "compile.options.dtype", "write `dtype: float16`"
    elif tp > 1 and first(1, dtype) is None:
        path, hint = "compile.tensor_parallel_size", "write `tensor_parallel_size: 1`"
    else:
        path = _format_path(recipe)
        groups = "" if scheme.group_size == -1 else "a smaller `group_size`, "
        hint = f"use {groups}a newer release, or `method: none`"
    yield refused("vllm.sizes", message, path, hint)


def _cache_problems(scheme: QuantScheme, target: Target) -> Iterator[Problem]:
    """Of an 8-bit cache of keys and values."""
    kind = scheme.kv_cache_dtype
    if kind == "auto":
        return
    path = "quantize.kv_cache_dtype"
    if kind != "fp8":
        yield refused(
            "vllm.cache", f"vLLM has no {kind} cache", path, "write `fp8` or `auto`"
        )
    elif not target.handler.reads("kv_cache_dtype"):
        yield refused(
            "vllm.cache",
            f"the handler `{target.handler.name}` passes no `kv_cache_dtype` on",
            path,
            "write `auto`, or use `release: djl-lmi-0.36.0`",
        )
    elif scheme.packing not in _CACHE_SCALES:
        yield refused(
            "vllm.cache",
            f"vLLM has no place for scales of the cache beside `{scheme.packing}`"
            " weights",
            path,
            "write `format: compressed-tensors`, or `kv_cache_dtype: auto`",
        )


def _memory_problems(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Iterator[Problem]:
    """Whether the bounds have room in the largest share that vLLM can be given."""
    share = choose_share(recipe, model, scheme, target)
    if not share.cannot or share.report.capacity is None:
        return
    have, need = share.report.capacity.high, share.report.total.low
    yield refused(
        "vllm.memory",
        f"the bounds take {format_bytes(need)} at least on each device of"
        f" `{target.instance.name}`, which has {format_bytes(have)}; most of it is"
        f" {share.report.binding}",
        "bounds.max_batch_size",
        "`lmi-build size RECIPE --largest batch` says what fits",
    )


def _format_path(recipe: Recipe) -> str:
    return "model.source" if recipe.quantize.method == "none" else "quantize.format"
