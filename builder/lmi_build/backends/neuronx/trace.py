"""
An encoder lowered to `torch_neuronx.trace`: one graph for each length.

A graph has one batch and one length; shorter texts and smaller batches are padded, and
what is padded changes no answer. Pooling and normalisation are part of the graph, so
that one vector leaves the device for each text and not one for each token.

Several cores are used by several workers, each with a core and the graphs of its own:
the front end hands every worker the next batch, which splits nothing and waits for
nobody. A layer of such a model is too small to be worth a division between cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lmi_build.backends.neuronx.buckets import token_buckets
from lmi_build.backends.neuronx.calls import NeuronCall
from lmi_build.backends.neuronx.encoders import (
    EMBEDDING,
    encoder_models,
    encoder_tasks,
    padding_id,
    task_of,
)
from lmi_build.backends.neuronx.sentence import MODULES
from lmi_build.backends.neuronx.trace_options import (
    read_serve_options,
    read_trace_options,
)
from lmi_build.spi import Serving
from lmi_build.values.stage import Estimate, Note

if TYPE_CHECKING:
    from lmi_build.backends.neuronx.trace_options import TraceOptions
    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.digest import JSONValue
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe

HANDLER = "neuronx_encoder"
ENGINE_DIR = "engine"
# What the driver says about the graphs, and what the float model answers.
RECORD, REFERENCE = "neuron.json", "reference.json"
_FLOAT32_BYTES = 4
# PyTorch, transformers and the compiler before the model; the graph holds the weights
# as the model, as constants and as the compiler reads them.
_BASE_RAM_BYTES = 2 << 30
_RAM_COPIES = 4


def length_buckets(max_input_len: int, wanted: tuple[int, ...] = ()) -> tuple[int, ...]:
    """
    Lengths of the graphs, rising; the last is the bound.

    Args:
        max_input_len: Longest text, in tokens.
        wanted: `length_buckets` of the recipe; empty doubles from 128.

    Example:
        >>> length_buckets(512)
        (128, 256, 512)
    """
    return wanted or token_buckets(max_input_len)


def graph_file(length: int) -> str:
    """The file of one graph: `model.128.pt`."""
    return f"model.{length}.pt"


def compiler_words(options: TraceOptions, *, family: str) -> tuple[str, ...]:
    """
    Words of `neuronx-cc compile`, every choice written out.

    Args:
        options: Of the recipe.
        family: Instance family: `inf2`, `trn1`, `trn1n` or `trn2`.
    """
    words = ["--target", family, "--auto-cast", options.auto_cast]
    if options.auto_cast != "none":
        words += ["--auto-cast-type", options.auto_cast_type]
    words += ["--optlevel", str(options.optlevel)]
    if options.saturate_infinity:
        words.append("--enable-saturate-infinity")
    if options.mixed_precision_accumulation:
        words.append("--enable-mixed-precision-accumulation")
    return tuple(words)


def lower_trace(recipe: Recipe, model: ModelFacts, *, family: str) -> NeuronCall:
    """
    The call that compiles an encoder.

    Args:
        recipe: One in which `trace_problems` found nothing.
        model: Its model.
        family: Instance family of the target.

    Example:
        >>> call = lower_trace(recipe, model, family="inf2")  # doctest: +SKIP
        >>> call.files  # doctest: +SKIP
        ('model.128.pt', 'model.256.pt', 'reference.json')
    """
    options = read_trace_options(recipe.compile.options)
    lengths = length_buckets(recipe.bounds.max_input_len, options.length_buckets)
    words = compiler_words(options, family=family)
    task = encoder_tasks()[wanted_task(model, options)]
    row = encoder_models()[model.geometry.model_type]
    arguments: dict[str, JSONValue] = {
        "task": task.name,
        "inputs": list(row.inputs),
        "batch_size": recipe.bounds.max_batch_size,
        "padding_id": padding_id(model.config),
    }
    if task.name == EMBEDDING:
        # Empty and None: what the model's own files say, which are read where they are.
        arguments["pooling"] = list(options.pooling)
        arguments["normalize"] = options.normalize
    return NeuronCall(
        loader="trace",
        model_class=task.auto_class,
        arguments=arguments,
        steps=tuple(
            (
                "trace",
                {
                    "length": length,
                    "file": {"path": graph_file(length)},
                    "compiler_args": list(words),
                },
            )
            for length in lengths
        ),
        environment={"NEURON_PLATFORM_TARGET_OVERRIDE": family},
        flags=words,
        num_graphs=len(lengths),
        num_neffs=0,
        files=(*map(graph_file, lengths), REFERENCE),
        target=family,
    )


def trace_device_needed(release: NeuronRelease) -> bool:
    """
    Whether a release traces only where a Neuron device is.

    torch-neuronx 1.13 makes its graphs beside an invented device, and the later ones
    take `cpu_backend`; 2.1 starts the runtime, which finds none.

    Source: `mock_neuron_cores` in torch_neuronx/contexts.py of 1.13; the documented
    signatures of `torch_neuronx.trace`; aws-neuron/aws-neuron-sdk#910.
    """
    return release.torch_neuronx.startswith("2.1.")


def wanted_task(model: ModelFacts, options: TraceOptions) -> str:
    """The recipe's task, or else the one the model was trained for; may be empty."""
    return options.task or task_of(model.config, sentence=is_sentence(model))


def has_file(model: ModelFacts, path: str) -> bool:
    """Whether a file comes with the model."""
    return any(file.path == path for file in model.files)


def is_sentence(model: ModelFacts) -> bool:
    """Whether sentence-transformers saved the model."""
    return has_file(model, MODULES)


def trace_lengths(recipe: Recipe) -> tuple[int, ...]:
    """The lengths that a recipe means."""
    options = read_trace_options(recipe.compile.options)
    return length_buckets(recipe.bounds.max_input_len, options.length_buckets)


def weight_bytes(model: ModelFacts) -> int:
    """Bytes of the weights in float32, as a graph has them."""
    return sum(tensor.num_elements for tensor in model.tensors) * _FLOAT32_BYTES


def graph_bytes(recipe: Recipe, model: ModelFacts) -> int:
    """Bytes of all graphs: each holds all weights."""
    return weight_bytes(model) * len(trace_lengths(recipe))


def trace_estimate(recipe: Recipe, model: ModelFacts) -> Estimate:
    """Bytes on disk and in memory of compiling the graphs one after another."""
    return Estimate(
        disk_bytes=graph_bytes(recipe, model),
        scratch_bytes=weight_bytes(model) * 2,
        ram_bytes=_BASE_RAM_BYTES + weight_bytes(model) * _RAM_COPIES,
    )


def trace_notes(recipe: Recipe) -> tuple[Note, ...]:
    """What `plan` says about an encoder's graphs."""
    options = read_trace_options(recipe.compile.options)
    lengths = ", ".join(map(str, trace_lengths(recipe)))
    notes = [
        Note(
            level="info",
            code="neuronx.encoder-graphs",
            message=f"graphs of {recipe.bounds.max_batch_size} texts and {lengths}"
            " tokens; a text is padded to the shortest that holds it",
        )
    ]
    if options.auto_cast == "none":
        notes.append(
            Note(
                level="info",
                code="neuronx.encoder-float32",
                message="computed in float32; `compile.options.auto_cast: matmult`"
                " rounds the factors of matrix products to bfloat16, which the cores"
                " multiply faster",
            )
        )
    return tuple(notes)


def trace_serving(recipe: Recipe) -> Serving:
    """
    What the package of an encoder needs.

    Args:
        recipe: One in which `trace_problems` found nothing.

    Source: djl-serving 0.25.0-dlc to 0.34.0-dlc: `ModelInfo.getLoadOnDevices` and
    `Connection.getNeuronVisibleCores` (one worker on each core where a layer is not
    split; without the key some releases split over all cores), `PyPredictor` (requests
    of one batch get one status).
    """
    options = read_serve_options(recipe.serve.options)
    bounds = recipe.bounds
    batch = bounds.max_batch_size if options.dynamic_batching else 1
    properties = {
        "option.tensor_parallel_degree": "1",
        # Of one core each.
        "minWorkers": "1",
        "maxWorkers": "1",
        "batch_size": str(batch),
    }
    if batch > 1:
        properties["max_batch_delay"] = str(options.max_batch_delay)
    return Serving(
        handler=HANDLER,
        requirements=(),
        properties=properties,
        engine_dir=ENGINE_DIR,
        settings={
            "schema": "lmi-build/handler/v1",
            "engine_dir": ENGINE_DIR,
            "bounds": {
                "max_input_len": bounds.max_input_len,
                "max_output_len": bounds.max_output_len,
                "max_batch_size": bounds.max_batch_size,
            },
        },
    )


def graph_lengths(call: NeuronCall) -> tuple[int, ...]:
    """The lengths of a call's graphs."""
    return tuple(cast("int", arguments["length"]) for _, arguments in call.steps)


def trace_expected(call: NeuronCall) -> dict[str, JSONValue]:
    """What the driver's `effective` values must come out as."""
    return {
        "task": call.arguments["task"],
        "batch_size": call.arguments["batch_size"],
        "lengths": list(graph_lengths(call)),
    }
