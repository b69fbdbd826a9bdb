"""What LMI's handler of Transformers NeuronX reads from a release's properties."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.property_reader import (
    NUMBER,
    VARIABLES,
    PropertyReader,
    RefusedError,
    unread,
)
from lmi_build.backends.verdicts import generates_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.neuronx.front_ends import NeuronFrontEnd

DTYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
LAYOUT_NAMES = ("BSH", "HSB", "SBH")
DTYPE_NAMES = ("float32", "float16", "bfloat16")
GQA_NAMES = (
    "shard-over-heads",
    "shard-over-batch",
    "replicated-heads",
    "all-gather-heads",
)
# What an option of `NeuronConfig` may say; all others are yes or no.
OPTION_WORDS = {
    "group_query_attention": GQA_NAMES,
    "collectives_layout": LAYOUT_NAMES,
    "attention_layout": LAYOUT_NAMES,
    "cache_layout": LAYOUT_NAMES,
    "all_reduce_dtype": DTYPE_NAMES,
    "cast_logits_dtype": DTYPE_NAMES,
}
STRATEGIES = ("continuous_batching", "naive_rolling_batch")
STATIC_INT8 = "static_int8"
USUAL_BATCH_SIZE = 32
# What the server sets for a scheduler of GPUs, whatever then schedules.
_GPU_BATCH_SIZE = 256
_LMI_DIST = "lmi-dist"
_FLAGS = {
    "enable_mixed_precision_accumulation": "--enable-mixed-precision-accumulation",
    "enable_saturate_infinity": "--enable-saturate-infinity",
}
_LEVELS = ("1", "2", "3")


@dataclass(frozen=True, kw_only=True, slots=True)
class HandlerSettings:
    """
    The properties as the handler has them when it makes its loader.

    Args:
        rolling_batch: `disable`, `vllm`, or another word for its own scheduler.
        max_rolling_batch_size: Requests that the scheduler takes together.
        batch_size: Requests of one batch without a scheduler.
        strategy: One of `STRATEGIES`, or empty where none is named.
        loader: What `option.model_loader` says; empty where it says nothing.
        tensor_parallel_degree: Cores that a layer is split over.
        n_positions: Tokens of a request, prompt and answer.
        context_lengths: Lengths of prompts that have a graph; None where none is named.
        amp: Float type, as Transformers NeuronX spells it.
        int8: Weights are rounded to 8 bits when they are loaded.
        options: Options of `NeuronConfig`, those that are set.
        further: Arguments of `from_pretrained` that are not the compiler's.
        flags: Words added to `NEURON_CC_FLAGS`.
        split: `option.load_split_model` says yes.
        generation_variable: A variable asks for generation on the device, which the
            loader of Transformers NeuronX ends at.
        loader_hints: Properties that make 0.27 take Transformers NeuronX.
    """

    rolling_batch: str
    max_rolling_batch_size: int
    batch_size: int
    strategy: str
    loader: str
    tensor_parallel_degree: int
    n_positions: int
    context_lengths: tuple[int, ...] | None
    amp: str
    int8: bool
    options: Mapping[str, bool | str]
    further: Mapping[str, bool | str]
    flags: tuple[str, ...]
    split: bool
    generation_variable: bool
    loader_hints: bool


def handler_settings(
    front: NeuronFrontEnd,
    properties: Mapping[str, str],
    config: Mapping[str, Any],
    environment: Mapping[str, str],
) -> HandlerSettings:
    """
    Read the properties as one release does.

    Args:
        front: The release.
        properties: Entries of `serving.properties` and of `OPTION_*` variables.
        config: `config.json` at the root.
        environment: Variables of the container.

    Raises:
        RefusedError: The handler ends with an error, or the machine decides.
    """
    read = PropertyReader(front, properties, environment)
    read.refuse_unfollowed()
    size = read.number("max_rolling_batch_size")
    rolling_batch = _rolling_batch(front, properties, config, size)
    if size is None and front.smart_defaults:
        read.machine_decides("max_rolling_batch_size")
    batch_size = read.number("batch_size") or 1
    if batch_size > 1 and rolling_batch != "disable":
        raise RefusedError(
            f"`option.batch_size` is {batch_size} with a rolling batch, which the"
            " handler refuses",
            "write `option.max_rolling_batch_size` alone",
        )
    return HandlerSettings(
        rolling_batch=rolling_batch,
        max_rolling_batch_size=size or _usual_batch_size(front, rolling_batch),
        batch_size=batch_size,
        strategy=read.word("rolling_batch_strategy", STRATEGIES)
        if front.strategies
        else "",
        loader=read.word("model_loader", front.model_loaders),
        tensor_parallel_degree=_degree(read),
        n_positions=_positions(front, read),
        context_lengths=_context_lengths(read),
        amp=DTYPES[read.word("dtype", tuple(DTYPES)) or "fp16"],
        int8=bool(read.word("quantize", (STATIC_INT8,)) or read.truth("load_in_8bit")),
        options=_options(front, read, config),
        further=_further(front, read),
        flags=_flags(read),
        split=bool(read.truth("load_split_model")),
        generation_variable=read.generation_variable,
        loader_hints=any(
            read.text(name) is not None
            for name in (
                *("fuse_qkv", "collectives_layout", "on_device_embedding", "quantize"),
                *("load_in_8bit", "load_split_model", "compiled_graph_path"),
                "context_length_estimate",
            )
        ),
    )


def _rolling_batch(
    front: NeuronFrontEnd,
    properties: Mapping[str, str],
    config: Mapping[str, Any],
    size: int | None,
) -> str:
    """The scheduler, after the server has filled in what the file leaves open."""
    text = properties.get("option.rolling_batch")
    if not front.recommends:
        return text or front.rolling_batch_unset
    if (properties.get("batch_size") or "1").strip() not in {"0", "1"}:
        return "disable"
    word = text or front.rolling_batch_unset
    if word == _LMI_DIST:
        return front.lmi_dist
    if word != "auto":
        return word
    if not generates_text(config):
        return "disable"
    return "vllm" if front.vllm_from and (size or 1) >= front.vllm_from else "tnx"


def _usual_batch_size(front: NeuronFrontEnd, rolling_batch: str) -> int:
    """Requests of a batch where nothing says how many and no memory is counted."""
    gpu = front.recommends and rolling_batch in {_LMI_DIST, "vllm"}
    return _GPU_BATCH_SIZE if gpu else USUAL_BATCH_SIZE


def _degree(read: PropertyReader) -> int:
    text = read.text("tensor_parallel_degree")
    if text is None or text == "max":
        read.machine_decides("tensor_parallel_degree")
    return read.number("tensor_parallel_degree") or 0


def _positions(front: NeuronFrontEnd, read: PropertyReader) -> int:
    found = read.number("n_positions")
    if found is None and not front.n_positions:
        read.machine_decides("n_positions")
    return front.n_positions if found is None else found


def _context_lengths(read: PropertyReader) -> tuple[int, ...] | None:
    name = "context_length_estimate"
    text = read.text(name)
    if text is not None:
        parts = text.split(",")
        if not all(NUMBER.match(part) for part in parts):
            raise unread(name, text, "whole numbers with commas between them")
        return tuple(int(part) for part in parts)
    variable = read.variable(name)
    if variable is None:
        return None
    try:
        return tuple(int(part) for part in ast.literal_eval(variable))
    except (ValueError, SyntaxError, TypeError) as error:
        raise RefusedError(
            f"{VARIABLES[name]} is {variable!r}, which is no list of numbers",
            "write `option.context_length_estimate` instead",
        ) from error


def _options(
    front: NeuronFrontEnd, read: PropertyReader, config: Mapping[str, Any]
) -> dict[str, bool | str]:
    """What goes to `NeuronConfig`: what is set and not no."""
    found: dict[str, bool | str] = {}
    for name in front.neuron_config:
        if name in OPTION_WORDS:
            if word := read.word(name, OPTION_WORDS[name]):
                found[name] = word
        elif read.truth(name):
            found[name] = True
    name = "on_device_embedding"
    if front.smart_defaults and read.text(name) is None and "neuron" in config:
        found[name] = True
    if front.smart_defaults and read.truth("load_split_model"):
        found[name] = True
    return found


def _further(front: NeuronFrontEnd, read: PropertyReader) -> dict[str, bool | str]:
    """What the loader passes on beside the compiler's arguments."""
    if not front.strategies:
        # The oldest loader passes none of them.
        return {}
    found: dict[str, bool | str] = {}
    revision = read.text("revision")
    if revision is not None:
        found["revision"] = revision
    for name in ("low_cpu_mem_usage", "trust_remote_code"):
        if read.truth(name):
            found[name] = True
    return found


def _flags(read: PropertyReader) -> tuple[str, ...]:
    """Two of these properties add their flag whatever they say."""
    level = read.word("neuron_optimize_level", _LEVELS)
    found = [f"-O{level}"] if level else []
    found += [flag for name, flag in _FLAGS.items() if read.truth(name) is not None]
    return tuple(found)
