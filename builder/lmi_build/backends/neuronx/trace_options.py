"""`compile.options` and `serve.options` of an encoder, checked by name and value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from lmi_build.backends.neuronx.encoders import encoder_tasks
from lmi_build.backends.neuronx.sentence import POOLINGS
from lmi_build.errors import Problem
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.digest import JSONValue

# Options that another key of the recipe sets, by what to write instead.
_OWNED = {
    "batch_size": "bounds.max_batch_size",
    "sequence_length": "bounds.max_input_len",
    "target": "compile.target",
    "tp_degree": "compile.tensor_parallel_size",
    "dynamic_batch_size": "bounds.max_batch_size",
}
# Values of neuronx-cc's `compile`; fp8_e4m3 since 2.5.
AUTO_CASTS = ("none", "matmult", "all")
AUTO_CAST_TYPES = ("bf16", "fp16", "tf32", "fp8_e4m3")
OPT_LEVELS = (1, 2, 3)
MAX_BUCKETS = 16
MAX_DELAY_MILLISECONDS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceOptions:
    """
    What a recipe may say about an encoder's graphs.

    Args:
        task: A task of `encoders.toml`; empty takes the architecture's own.
        pooling: How the states of a text become one; empty takes the model's files.
        normalize: The vector gets length 1; None takes the model's files.
        length_buckets: Lengths of the graphs, rising, the last `max_input_len`; empty
            doubles from 128.
        auto_cast: Which float32 operations the compiler may round: none of them,
            matrix products, or all.
        auto_cast_type: What it rounds them to.
        optlevel: Of the compiler.
        saturate_infinity: Results over a number format's range become its largest
            number instead of infinity.
        mixed_precision_accumulation: Sums of rounded products are kept in float32.
    """

    task: str = ""
    pooling: tuple[str, ...] = ()
    normalize: bool | None = None
    length_buckets: tuple[int, ...] = ()
    auto_cast: str = "none"
    auto_cast_type: str = "bf16"
    optlevel: int = 2
    saturate_infinity: bool = False
    mixed_precision_accumulation: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceServeOptions:
    """
    What a recipe may say about serving an encoder.

    Args:
        dynamic_batching: Requests of several clients share a graph's batch.
        max_batch_delay: Milliseconds that a request may wait for others.
    """

    dynamic_batching: bool = True
    max_batch_delay: int = 10


def read_trace_options(options: Mapping[str, JSONValue]) -> TraceOptions:
    """
    Options with their defaults.

    Args:
        options: `compile.options`; `trace_option_problems` found nothing.
    """
    values: dict[str, Any] = dict(options)
    for name in ("pooling", "length_buckets"):
        if name in values:
            value = values[name]
            values[name] = tuple(value) if isinstance(value, list | tuple) else (value,)
    if "pooling" in values:
        # The order in which vectors are joined is not the recipe's to choose.
        values["pooling"] = tuple(p for p in POOLINGS if p in values["pooling"])
    return TraceOptions(**values)


def read_serve_options(options: Mapping[str, JSONValue]) -> TraceServeOptions:
    """
    Options with their defaults.

    Args:
        options: `serve.options`; `serve_option_problems` found nothing.
    """
    return TraceServeOptions(**cast("dict[str, Any]", dict(options)))


def trace_option_problems(
    options: Mapping[str, JSONValue], *, max_input_len: int
) -> Iterator[Problem]:
    """
    Everything wrong with the options of an encoder, each by its own path.

    Args:
        options: `compile.options`.
        max_input_len: Where the buckets must end.
    """
    known = {item.name for item in fields(TraceOptions)}
    for name, value in options.items():
        path = f"compile.options.{name}"
        if name in _OWNED:
            yield Problem(
                code="compile.owned-option",
                message=f"`{name}` follows from the recipe",
                path=path,
                hint=f"remove the line and set `{_OWNED[name]}`",
            )
        elif name not in known:
            yield _unknown(name, path, known)
        elif fault := _fault(name, value, max_input_len):
            yield _wrong(path, *fault)


def serve_option_problems(options: Mapping[str, JSONValue]) -> Iterator[Problem]:
    """
    Everything wrong with the settings of an encoder's server.

    Args:
        options: `serve.options`.
    """
    known = {item.name for item in fields(TraceServeOptions)}
    for name, value in options.items():
        path = f"serve.options.{name}"
        if name not in known:
            yield _unknown(name, path, known)
        elif name == "dynamic_batching":
            if not isinstance(value, bool):
                yield _wrong(path, f"is {value!r}", "write true or false")
        elif not _whole(value) or not 0 < cast("int", value) <= MAX_DELAY_MILLISECONDS:
            yield _wrong(
                path,
                f"is {value!r}",
                f"write a number of milliseconds from 1 to {MAX_DELAY_MILLISECONDS}",
            )


def _fault(name: str, value: Any, max_input_len: int) -> tuple[str, str] | None:
    """What is wrong with a value, and what to write; None for nothing."""
    choices: Mapping[str, tuple[Any, ...]] = {
        "auto_cast": AUTO_CASTS,
        "auto_cast_type": AUTO_CAST_TYPES,
        "optlevel": OPT_LEVELS,
        "task": tuple(t.name for t in encoder_tasks().values() if not t.refused),
        "normalize": (True, False),
        "saturate_infinity": (True, False),
        "mixed_precision_accumulation": (True, False),
    }
    if name == "length_buckets":
        return _bucket_fault(value, max_input_len)
    if name == "pooling":
        return _pooling_fault(value)
    allowed = choices[name]
    if type(value) is not type(allowed[0]) or value not in allowed:
        if name == "task" and value in encoder_tasks():
            return (
                f"is `{value}`, which is not built: {encoder_tasks()[value].refused}",
                f"write {join_words(allowed)}",
            )
        return f"is {value!r}", f"write {_choices(allowed)}"
    return None


def _pooling_fault(value: Any) -> tuple[str, str] | None:
    names = value if isinstance(value, list | tuple) else [value]
    if names and set(map(str, names)) <= set(POOLINGS):
        return None
    return f"is {value!r}", f"write {join_words(POOLINGS)}, or a list of them"


def _bucket_fault(value: Any, max_input_len: int) -> tuple[str, str] | None:
    rows = value if isinstance(value, list | tuple) else None
    example = f"write a list such as {[max(1, max_input_len // 2), max_input_len]}"
    if not rows or not all(_whole(row) and row > 0 for row in rows):
        return f"is {value!r}, not a list of lengths", example
    if list(rows) != sorted(set(rows)):
        return f"is {list(rows)}, which does not rise", example
    if rows[-1] != max_input_len:
        return (
            f"ends at {rows[-1]}, `bounds.max_input_len` is {max_input_len}",
            f"end it with {max_input_len}, or change the bound",
        )
    if len(rows) > MAX_BUCKETS:
        return (
            f"has {len(rows)} lengths, each of them a graph with all weights",
            f"write at most {MAX_BUCKETS}",
        )
    return None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _choices(values: tuple[Any, ...]) -> str:
    if isinstance(values[0], bool):
        return "true or false"
    return join_words([str(value) for value in values])


def _unknown(name: str, path: str, known: set[str]) -> Problem:
    near = did_you_mean(name, sorted(known))
    return Problem(
        code="neuronx.encoder-option",
        message=f"`{name}` is no option of an encoder",
        path=path,
        hint=f"did you mean `{near}`?" if near else f"use {join_words(sorted(known))}",
    )


def _wrong(path: str, what: str, hint: str) -> Problem:
    return Problem(
        code="neuronx.encoder-option",
        message=f"`{path.rpartition('.')[2]}` {what}",
        path=path,
        hint=hint,
    )
