"""
What Transformers NeuronX is told, so that LMI finds its graphs.

LMI's loader builds every graph again and looks for its hash among those that lie beside
the model. So a recipe is lowered to the very call that the loader of its release will
make: the same class, the same arguments, the same fields of NeuronConfig.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.buckets import serial_finding
from lmi_build.backends.neuronx.calls import Made, NeuronCall
from lmi_build.backends.neuronx.heads import explain_heads, padded_vocabulary
from lmi_build.backends.neuronx.memory import (
    core_memory,
    disk_bytes,
    explain_core,
    explain_host,
)
from lmi_build.backends.neuronx.models import neuron_models
from lmi_build.backends.neuronx.signatures import neuron_config_fields
from lmi_build.backends.neuronx.tnx_request import (
    given_buckets,
    parameters,
    shape_of,
    tnx_host_memory,
)
from lmi_build.backends.neuronx.topology import core_memory_bytes, topology_finding
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from lmi_build.backends.neuronx.tnx_request import TnxRequest, TnxShape

AUTO_CLASS = "transformers_neuronx.NeuronAutoModelForCausalLM"
COMPILED = "compiled"
CHECKPOINT = "checkpoint"
WORKERS = "compilation_worker_count"
_CONFIG = "transformers_neuronx.config"
# Flags that the library adds where their name is no part of the user's string: so
# `--auto-cast-type` alone takes `--auto-cast=none` away. Source: `get_compiler_flags`
# in transformers_neuronx/compiler.py, 0.9 to 0.13.
_DEFAULT_FLAGS = {"--model-type": "transformer", "--auto-cast": "none"}
_TARGETS = {"inf2": "inf2", "trn1": "trn1", "trn1n": "trn1"}


def lower_tnx(request: TnxRequest) -> NeuronCall:
    """
    The call that compiles a decoder.

    Args:
        request: `tnx_problems` found nothing wrong with it.

    Raises:
        KeyError: The release, the model type or the dtype is not known.
    """
    shape, loader = shape_of(request), request.loader
    said = compiler_flags(request)
    environment = {"NEURON_PLATFORM_TARGET_OVERRIDE": platform_target(request)}
    if said:
        environment["NEURON_CC_FLAGS"] = shlex.join(said)
    return NeuronCall(
        loader="tnx",
        model_class=AUTO_CLASS if loader.model_class == "auto" else _own(request),
        arguments=_arguments(request, shape),
        steps=_steps(request, shape),
        environment=environment,
        flags=(*said, *_added_flags(said)),
        num_graphs=shape.graphs.total,
        num_neffs=shape.graphs.total,
        files=_files(request),
        target=platform_target(request),
    )


def device_needed(request: TnxRequest) -> bool:
    """
    Whether it cannot be compiled where there is no device.

    Args:
        request: What is compiled.
    """
    return _needs_device(request, shape_of(request))


def platform_target(request: TnxRequest) -> str:
    """What the compiler calls the cores of the machine that serves."""
    return _TARGETS[request.instance.name.split(".")[1]]


def compiler_flags(request: TnxRequest) -> tuple[str, ...]:
    """
    Words of `NEURON_CC_FLAGS`: the image's, the recipe's, and what those would swallow.

    Args:
        request: What is compiled.
    """
    given = request.options.get("cc_flags", ())
    own = given if isinstance(given, list | tuple) else shlex.split(str(given))
    words = [*shlex.split(request.release.cc_flags), *map(str, own)]
    joined = " ".join(words)
    for name, value in _DEFAULT_FLAGS.items():
        if name in joined and not _says(words, name):
            words.append(f"{name}={value}")
    return tuple(words)


def compiler_workers(request: TnxRequest) -> int | None:
    """
    Compiler processes at a time, where something holds them back; else None.

    Args:
        request: What is compiled; the machine that serves stands for the host.
    """
    given = request.options.get(WORKERS)
    if isinstance(given, int):
        return given
    if WORKERS not in neuron_config_fields(request.release.tnx_row):
        return None
    host = tnx_host_memory(request)
    found = host.workers(request.instance.memory_bytes)
    return found if 0 < found < host.num_graphs else None


def effective(request: TnxRequest) -> dict[str, Any]:
    """
    What the library must say of the model once it is built.

    Args:
        request: What is compiled.

    Returns:
        `token_buckets`, `context_buckets` and `group_query_attention`.
    """
    shape = shape_of(request)
    return {
        "token_buckets": list(shape.tokens),
        "context_buckets": list(shape.contexts),
        "group_query_attention": shape.heads.mode,
    }


def tnx_disk_bytes(request: TnxRequest) -> int:
    """
    What the result takes on disk.

    Args:
        request: What is compiled.
    """
    return disk_bytes(
        shape_of(request).memory,
        parameters=parameters(request),
        presharded=request.loader.weights == "presharded",
    )


def explain_tnx(request: TnxRequest) -> tuple[str, ...]:
    """
    One line for each number that the recipe does not say.

    Args:
        request: What is compiled.
    """
    shape, bounds = shape_of(request), request.bounds
    tp, vocabulary = request.tensor_parallel_size, request.geometry.vocab_size
    parts = f"prompt {bounds.max_input_len} + output {bounds.max_output_len}"
    prompts = shape.graphs.total - shape.graphs.token
    lines = [
        f"n_positions = {request.n_positions}: {parts}",
        f"token buckets {_words(shape.tokens)}: {_why_tokens(request)}",
        f"context buckets {_words(shape.contexts)}: {_why_contexts(request)}",
        f"graphs = {shape.graphs.token} for generation + {prompts} for prompts",
        *explain_heads(shape.head_terms),
    ]
    if vocabulary % tp:
        lines.append(
            f"vocabulary {vocabulary} -> {padded_vocabulary(vocabulary, tp)}: padded to"
            f" a multiple of {tp} cores"
        )
    core_bytes = core_memory_bytes(request.instance)
    lines += explain_core(core_memory(shape.memory), core_bytes=core_bytes)
    host = tnx_host_memory(request)
    lines += explain_host(host, memory_bytes=request.instance.memory_bytes)
    return tuple(lines)


def tnx_findings(request: TnxRequest) -> tuple[str, ...]:
    """
    What works, but not as one might expect.

    Args:
        request: What is compiled.
    """
    shape, bounds = shape_of(request), request.bounds
    found = [
        serial_finding(shape.contexts, bounds.max_input_len),
        topology_finding(request.instance, request.tensor_parallel_size),
    ]
    if request.whole_prompts and request.n_positions > bounds.max_input_len:
        found.append(
            f"`{request.release.name}` pads every prompt to {request.n_positions}"
            " tokens: with these options it takes one context bucket, of all positions"
        )
    if not request.continuous and bounds.max_batch_size > 1:
        found.append(
            f"`{request.model_type}` is not batched continuously: a request that joins"
            " makes the whole batch compute its prompts again"
        )
    core, room = core_memory(shape.memory), core_memory_bytes(request.instance)
    if core.total_bytes > room:
        found.append(
            f"with graphs a core may need {format_bytes(core.total_bytes)} and has"
            f" {format_bytes(room)}, by a rule of thumb"
        )
    if device_needed(request) and request.release.cpu_compile:
        found.append(
            "compiling needs a Neuron device: its library has no way around one for"
            " this model and batch"
        )
    return tuple(line for line in found if line is not None)


def _own(request: TnxRequest) -> str:
    return neuron_models()[request.model_type].loaders["tnx"].model_class


def _arguments(request: TnxRequest, shape: TnxShape) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`, as LMI's loader passes them."""
    length = request.n_positions
    found: dict[str, Any] = {
        "batch_size": request.bounds.max_batch_size,
        "amp": request.amp,
        "tp_degree": request.tensor_parallel_size,
        "n_positions": [length] if request.continuous else length,
    }
    if request.takes_contexts:
        found["context_length_estimate"] = list(shape.contexts)
    found["neuron_config"] = Made(
        factory=f"{_CONFIG}.NeuronConfig", arguments=_neuron_config(request)
    )
    return found


def _neuron_config(request: TnxRequest) -> dict[str, Any]:
    """Fields of NeuronConfig that LMI's loader sets; it passes on no false switch."""
    found: dict[str, Any] = {}
    if request.continuous:
        found["continuous_batching"] = Made(
            factory=f"{_CONFIG}.ContinuousBatchingConfig",
            arguments={"batch_size_for_shared_caches": request.bounds.max_batch_size},
        )
    if request.int8:
        found["quant"] = Made(
            factory=f"{_CONFIG}.QuantizationConfig",
            arguments={"quant_dtype": "s8", "dequant_dtype": request.amp},
        )
    for name in sorted(request.release.options):
        if value := request.options.get(name):
            found[name] = value
    if request.on_device_embedding:
        found["on_device_embedding"] = True
    if (workers := compiler_workers(request)) is not None:
        found[WORKERS] = workers
    return found


def _steps(
    request: TnxRequest, shape: TnxShape
) -> tuple[tuple[str, dict[str, Any]], ...]:
    alone = not request.has_device and not _needs_device(request, shape)
    name = "cpu_compile" if alone else "to_neuron"
    save: dict[str, Any] = {"directory": {"path": COMPILED}}
    if request.loader.weights == "presharded":
        return (name, {}), ("save", {**save, "sharded_weights": True})
    weights = {"directory": {"path": CHECKPOINT}}
    return (name, {}), ("save", save), (request.loader.weights, weights)


def _needs_device(request: TnxRequest, shape: TnxShape) -> bool:
    """
    Old versions always, and where a prompt's cache is copied over the batch.

    Without a device `save` of 0.13 gives safetensors one tensor for all cores where a
    gated MLP has 8-bit scales that they share, which safetensors refuses; the driver
    copies them first.
    """
    return not request.release.cpu_compile or shape.memory.broadcasts


def _files(request: TnxRequest) -> tuple[str, ...]:
    """What the result holds beside its graphs, whose names are hashes."""
    names = ["config.json", f"{COMPILED}/VERSION"]
    if request.loader.weights == "presharded":
        layers = range(request.geometry.num_layers)
        names += [f"{COMPILED}/decoder_layer_{index}.safetensors" for index in layers]
        names += [f"{COMPILED}/DecoderLMHead.safetensors", f"{COMPILED}/config.json"]
    else:
        names.append(f"{CHECKPOINT}/config.json")
    return tuple(sorted(names))


def _says(words: list[str], name: str) -> bool:
    return any(word == name or word.startswith(f"{name}=") for word in words)


def _added_flags(words: tuple[str, ...]) -> tuple[str, ...]:
    joined = " ".join(words)
    return tuple(
        f"{name}={value}"
        for name, value in _DEFAULT_FLAGS.items()
        if name not in joined
    )


def _words(buckets: tuple[int, ...]) -> str:
    return ", ".join(map(str, buckets)) or "none"


def _why_tokens(request: TnxRequest) -> str:
    if request.continuous:
        return "continuous batching has one"
    return "doubling from 128 up to n_positions"


def _why_contexts(request: TnxRequest) -> str:
    if not request.takes_contexts:
        return "the class that this release loads has no graph for prompts"
    if request.whole_prompts:
        return "with these options the release takes one of n_positions"
    if given_buckets(request):
        return "as the recipe lists them"
    return "powers of two, then the longest prompt, so that none is padded far"
