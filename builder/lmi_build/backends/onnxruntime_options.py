"""`compile.options` of the backend `onnxruntime`: names, values and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.problems import bad_option, unknown_option
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem

# Levels of MatMulNBits: the type that activations have inside it. 0 leaves the choice
# to the kernel, 1 is float32, 4 is int8 with a scale per block.
ACCURACY_LEVELS = (0, 1, 4)
INTEGER_LEVEL = 4
LM_HEAD_DTYPES = ("float32", "int8")
BLOCK_SIZES = (16, 32, 64, 128)
# Scales of the head; its products take 15% less time than with blocks of 32.
HEAD_BLOCK_SIZE = 64
MAX_THREADS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """
    `compile.options`, complete.

    Args:
        accuracy_level: Activation type inside quantized products; see above. Where the
            checkpoint means 8-bit activations itself, 4 computes with its steps.
        qkv_accuracy_level: The same for the projections to queries, keys and values,
            where rounding of activations hurts most; 4-bit weights only.
        block_size: Widest block of a quantized layer. A smaller one keeps int8
            activations closer to their values; weights are the same in any.
        lm_head_dtype: `int8` rounds the head to 8 bits in blocks of 64, weight only;
            a tied embedding stays as it is.
        intra_op_num_threads: Threads of one forward pass; 0 takes every core.
    """

    accuracy_level: int = 4
    qkv_accuracy_level: int = 1
    block_size: int = 32
    lm_head_dtype: str = "float32"
    intra_op_num_threads: int = 0


_ALLOWED: Mapping[str, tuple[JSONValue, ...]] = {
    "accuracy_level": ACCURACY_LEVELS,
    "qkv_accuracy_level": ACCURACY_LEVELS,
    "block_size": BLOCK_SIZES,
    "lm_head_dtype": LM_HEAD_DTYPES,
}


def read_options(options: Mapping[str, JSONValue]) -> Options:
    """
    Options with their defaults; `check` has refused what is wrong.

    Raises:
        ValueError: An option is unknown or wrong: `check` was not asked.
    """
    problem = next(option_problems(options), None)
    if problem is not None:
        raise ValueError(problem.message)
    return Options(**options)  # type: ignore[arg-type]


def option_problems(options: Mapping[str, JSONValue]) -> Iterator[Problem]:
    """Yield what is wrong with options, by dotted recipe path."""
    names = Options.__slots__
    for name, value in options.items():
        if name not in names:
            yield unknown_option(name, names, whose="`onnxruntime`")
        elif name == "intra_op_num_threads":
            yield from _thread_problems(value)
        elif isinstance(value, bool) or value not in _ALLOWED[name]:
            allowed = join_words([str(option) for option in _ALLOWED[name]])
            yield bad_option(name, value, form=allowed, hint=f"use {allowed}")


def _thread_problems(value: JSONValue) -> Iterator[Problem]:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 0 <= value <= MAX_THREADS
    ):
        yield bad_option(
            "intra_op_num_threads",
            value,
            form=f"a whole number from 0 to {MAX_THREADS}",
            hint="use 0 for every core of the serving machine",
        )
