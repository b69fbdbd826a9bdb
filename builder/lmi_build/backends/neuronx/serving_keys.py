"""The `serving.properties` with which a release makes the call that was compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.call_differences import (
    call_differences,
    effective_class,
)
from lmi_build.backends.neuronx.calls import Made, plain
from lmi_build.backends.neuronx.front_ends import ENTRY_POINT, neuron_front_ends
from lmi_build.backends.neuronx.handler_properties import (
    DTYPES,
    OPTION_WORDS,
    STATIC_INT8,
    STRATEGIES,
)
from lmi_build.backends.neuronx.layout import layout_problems, neuron_block
from lmi_build.backends.neuronx.loader_call import NEURON_BLOCK, loader_call
from lmi_build.backends.neuronx.property_reader import RefusedError
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.neuronx.call_differences import Difference
    from lmi_build.backends.neuronx.calls import NeuronCall
    from lmi_build.backends.neuronx.front_ends import NeuronFrontEnd
    from lmi_build.backends.neuronx.loader_call import LoaderCall
    from lmi_build.catalog.neuron_releases import NeuronRelease

_AMP_WORDS = {amp: word for word, amp in DTYPES.items()}
_CONTINUOUS, _NAIVE = STRATEGIES
# A call's argument is called so in the recipe.
_RECIPE_PATHS = {
    "n_positions": "bounds.max_output_len",
    "context_length_estimate": "bounds.max_input_len",
    "batch_size": "bounds.max_batch_size",
    "continuous_batching.batch_size_for_shared_caches": "bounds.max_batch_size",
    "tp_degree": "compile.tensor_parallel_size",
}


def serving_properties(
    release: NeuronRelease,
    call: NeuronCall,
    config: Mapping[str, Any],
    *,
    rolling: bool = True,
) -> dict[str, str]:
    """
    Every entry of the file that this backend answers for.

    Nothing is left to what the server recommends: it makes `vllm` of a batch of 12 and
    more, and numbers of its own of what is not set. No flag of the compiler is written:
    it would name other compilations, and loading compiles nothing.

    Args:
        release: Row of the catalogue.
        call: The call that compiles.
        config: The model's `config.json`.
        rolling: Requests are batched by the handler's scheduler; else by the server,
            which then waits for the longest of a batch.

    Raises:
        ValueError: `serving_problems` has something to say about the same arguments.

    Example:
        `serving_properties(release, call, {"model_type": "llama"})` has
        `option.rolling_batch=tnx` and `option.n_positions` of a call for LMI 0.30.
    """
    problem = next(serving_problems(release, call, config, rolling=rolling), None)
    if problem is not None:
        raise ValueError(problem.message)
    return _entries(neuron_front_ends()[release.version], call, rolling=rolling)


def serving_problems(
    release: NeuronRelease,
    call: NeuronCall,
    config: Mapping[str, Any],
    *,
    rolling: bool = True,
) -> Iterator[Problem]:
    """
    Every reason why no properties make one release's loader repeat a call.

    Args: as of `serving_properties`.
    """
    problems = list(layout_problems(release))
    yield from problems
    if problems:
        return
    front = neuron_front_ends()[release.version]
    marked = {**config, NEURON_BLOCK: neuron_block(release, call.arguments)}
    try:
        made = loader_call(front, _entries(front, call, rolling=rolling), marked)
    except RefusedError as refused:
        yield Problem(
            code="neuronx.call-unserved",
            message=f"{release.name} would not make the call that was compiled:"
            f" {refused.reason}",
            path="compile.release",
            hint=refused.fix,
            unsupported=True,
        )
        return
    yield from _differences(release, call, made, config)


def _entries(
    front: NeuronFrontEnd, call: NeuronCall, *, rolling: bool
) -> dict[str, str]:
    arguments = call.arguments
    options = options_of(arguments)
    word = front.rolling_batch if rolling else "disable"
    batch = str(arguments["batch_size"])
    entries = {
        "engine": "Python",
        "option.entryPoint": ENTRY_POINT,
        "option.tensor_parallel_degree": str(arguments["tp_degree"]),
        "option.n_positions": _positions_word(arguments.get("n_positions")),
        "option.dtype": _AMP_WORDS.get(str(arguments["amp"]), str(arguments["amp"])),
        "option.rolling_batch": word,
    }
    if front.model_loaders:
        entries["option.model_loader"] = "tnx"
    if not rolling:
        # One for the server that gathers them, one for the handler.
        entries |= {"batch_size": batch, "option.batch_size": batch}
    # The default of both readers is another number, also where it is not used.
    entries["option.max_rolling_batch_size"] = batch
    if rolling and front.strategies:
        continuous = "continuous_batching" in options
        entries["option.rolling_batch_strategy"] = _CONTINUOUS if continuous else _NAIVE
    lengths = arguments.get("context_length_estimate")
    if lengths is not None:
        text = ",".join(map(str, _listed(lengths)))
        entries["option.context_length_estimate"] = text
    if "quant" in options:
        entries["option.quantize"] = STATIC_INT8
    for name in front.neuron_config:
        value = options.get(name)
        if value:
            entries[f"option.{name}"] = (
                str(plain(value)) if name in OPTION_WORDS else ("true")
            )
    return entries


def options_of(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a call gives to `NeuronConfig`."""
    config = arguments.get("neuron_config")
    return config.arguments if isinstance(config, Made) else {}


def _positions_word(value: Any) -> str:
    return ",".join(map(str, _listed(value)))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _differences(
    release: NeuronRelease,
    call: NeuronCall,
    made: LoaderCall,
    config: Mapping[str, Any],
) -> Iterator[Problem]:
    """Each argument, and each option of `NeuronConfig`, that would be another one."""
    rows = call_differences(call.arguments, made.arguments, tnx_row=release.tnx_row)
    for row in rows:
        yield Problem(
            code="neuronx.option-unserved",
            message=f"the loader of {release.name} would pass `{row.option}`"
            f" {_said(row.loaded)}, compiled is {_said(row.compiled)}: it would find"
            " no graph",
            path=_RECIPE_PATHS.get(row.option, f"compile.options.{row.option}"),
            hint=f"{_advice(row)}, or use another release",
            unsupported=True,
        )
    model_type = str(config.get("model_type", ""))
    ours = effective_class(call.model_class, model_type)
    theirs = effective_class(made.model_class, model_type)
    if ours != theirs:
        yield Problem(
            code="neuronx.class-unserved",
            message=f"the loader of {release.name} would take {theirs}, compiled is"
            f" {ours}, which has other graphs",
            path="compile.release",
            hint="use another release",
            unsupported=True,
        )


def _advice(row: Difference) -> str:
    if row.loaded is None:
        return f"remove `{row.option}`"
    return f"compile with `{row.option}` {_said(row.loaded)}"


def _said(value: Any) -> str:
    return "not set" if value is None else f"`{value}`"
