"""Why an encoder cannot be built as a recipe asks, found before a weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.encoders import (
    EMBEDDING,
    encoder_tasks,
    task_of,
    usable_positions,
)
from lmi_build.backends.neuronx.sentence import MODULES, POOLINGS
from lmi_build.backends.neuronx.trace import (
    graph_bytes,
    has_file,
    is_sentence,
    trace_lengths,
    wanted_task,
)
from lmi_build.backends.neuronx.trace_options import (
    read_trace_options,
    serve_option_problems,
    trace_option_problems,
)
from lmi_build.errors import Problem
from lmi_build.text import join_words
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.neuronx.trace_options import TraceOptions
    from lmi_build.catalog.instances import Instance
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe

TOKENIZER = "tokenizer.json"
# The runtime keeps part of a core's memory for itself.
_USABLE_SHARE = 0.9


def trace_problems(
    recipe: Recipe, model: ModelFacts, *, instance: Instance
) -> Iterator[Problem]:
    """
    Every reason why an encoder cannot be built as asked, by dotted recipe path.

    Args:
        recipe: The recipe; its loader is `trace`.
        model: Its model, an encoder.
        instance: What will serve.
    """
    length = recipe.bounds.max_input_len
    problems = [*trace_option_problems(recipe.compile.options, max_input_len=length)]
    yield from problems
    yield from serve_option_problems(recipe.serve.options)
    yield from _recipe_problems(recipe, model)
    yield from _bound_problems(recipe, model)
    if problems:
        return
    options = read_trace_options(recipe.compile.options)
    yield from _model_problems(model, options)
    yield from _memory_problems(recipe, model, instance)


def _recipe_problems(recipe: Recipe, model: ModelFacts) -> Iterator[Problem]:
    if model.config.get("quantization_config"):
        yield Problem(
            code="neuronx.encoder-quantized",
            message="the model comes quantized, which no graph of"
            " `torch_neuronx.trace` reads",
            path="model.source",
            hint="name the model's float repository",
            unsupported=True,
        )
    if recipe.quantize.method != "none":
        yield Problem(
            code="neuronx.encoder-quantized",
            message=f"`{recipe.quantize.method}` makes weights that no graph of"
            " `torch_neuronx.trace` reads",
            path="quantize.method",
            hint="write `method: none`; `compile.options.auto_cast: matmult` computes"
            " in bfloat16",
            unsupported=True,
        )
    size = recipe.compile.tensor_parallel_size
    if size != 1:
        yield Problem(
            code="neuronx.encoder-parallel",
            message=f"an encoder is not split over {size} cores: each worker has a core"
            " and all layers of its own",
            path="compile.tensor_parallel_size",
            hint="remove it; the server starts one worker on every core",
            unsupported=True,
        )


def _bound_problems(recipe: Recipe, model: ModelFacts) -> Iterator[Problem]:
    bounds = recipe.bounds
    positions = model.geometry.max_tokens
    usable = usable_positions(model.config, positions)
    if bounds.max_input_len > usable:
        lost = "" if usable == positions else f", {positions - usable} of them unused"
        yield Problem(
            code="neuronx.encoder-length",
            message=f"texts of {bounds.max_input_len} tokens do not fit the model's"
            f" {positions} positions{lost}",
            path="bounds.max_input_len",
            hint=f"lower it to {usable}",
        )
    fixed = (
        ("max_output_len", bounds.max_output_len, 0),
        ("max_beam_width", bounds.max_beam_width, 1),
        ("max_num_tokens", bounds.max_num_tokens, None),
    )
    for name, value, wanted in fixed:
        if value != wanted:
            yield Problem(
                code="neuronx.encoder-bound",
                message=f"an encoder generates nothing, `{name}` is {value}",
                path=f"bounds.{name}",
                hint="remove the line"
                if wanted is None
                else f"write `{name}: {wanted}`",
            )


def _model_problems(model: ModelFacts, options: TraceOptions) -> Iterator[Problem]:
    if not has_file(model, TOKENIZER):
        yield Problem(
            code="neuronx.encoder-tokenizer",
            message=f"the model has no `{TOKENIZER}`, which the handler reads",
            path="model.source",
            hint="save it once with transformers:"
            " `AutoTokenizer.from_pretrained(x).save_pretrained(x)`",
        )
    built = [task.name for task in encoder_tasks().values() if not task.refused]
    name = wanted_task(model, options)
    if not name or encoder_tasks()[name].refused:
        why = encoder_tasks()[name].refused if name else "its name tells no task"
        yield Problem(
            code="neuronx.encoder-task",
            message=f"`{model.geometry.architecture}` is not built: {why}",
            path="compile.options.task",
            hint=f"write `task: {EMBEDDING}` with a `pooling`, or take a model for"
            f" {join_words(built)}",
            unsupported=True,
        )
    elif name != EMBEDDING:
        yield from _head_problems(model, options, name)
    elif not options.pooling and not is_sentence(model):
        yield Problem(
            code="neuronx.encoder-pooling",
            message=f"the model has no `{MODULES}` that says how the states of a text"
            " become one vector",
            path="compile.options.pooling",
            hint=f"write `pooling: mean`, or another of {join_words(POOLINGS)}",
        )


def _head_problems(
    model: ModelFacts, options: TraceOptions, name: str
) -> Iterator[Problem]:
    """A head that the weights do not have would be filled with random numbers."""
    if task_of(model.config, sentence=False) != name:
        yield Problem(
            code="neuronx.encoder-task",
            message=f"`{model.geometry.architecture}` has no head for `{name}`",
            path="compile.options.task",
            hint=f"remove it, or take a model whose name ends in"
            f" `{encoder_tasks()[name].suffix}`",
        )
    given = [key for key in ("pooling", "normalize") if getattr(options, key)]
    for key in given:
        yield Problem(
            code="neuronx.encoder-option",
            message=f"`{key}` belongs to `{EMBEDDING}`, the task is `{name}`",
            path=f"compile.options.{key}",
            hint="remove the line",
        )


def _memory_problems(
    recipe: Recipe, model: ModelFacts, instance: Instance
) -> Iterator[Problem]:
    have = instance.device_memory_bytes // instance.cores_per_device
    need = graph_bytes(recipe, model)
    if need > have * _USABLE_SHARE:
        count = len(trace_lengths(recipe))
        yield Problem(
            code="neuronx.encoder-memory",
            message=f"{count} graphs hold the weights once each,"
            f" {format_bytes(need)}; a core has {format_bytes(have)}",
            path="compile.options.length_buckets",
            hint=f"write `length_buckets: [{recipe.bounds.max_input_len}]`",
        )
