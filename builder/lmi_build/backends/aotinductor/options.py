"""`compile.options` of the backend `aotinductor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.problems import bad_option, unknown_option
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem

DTYPES = ("float32", "bfloat16")
LM_HEAD_DTYPES = ("checkpoint", "int8")
ISAS = ("default", "avx2", "avx512")
# A prompt of one piece has at least so many tokens; fewer are padded.
SMALLEST_BUCKET = 16
_MAX_BUCKETS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """
    `compile.options`, complete.

    Args:
        dtype: Type of the activations and the key-value caches. Weights keep the
            checkpoint's.
        lm_head_dtype: `int8` rounds a float head to 8 bits in groups of 64, weight
            only; a tied embedding stays as it is.
        isa: Instructions of a CPU; `default` takes the widest of the machine that
            plans.
        context_buckets: Lengths of pieces of prompts, a graph each; empty takes the
            longest prompt, and a quarter of it.
    """

    dtype: str = "float32"
    lm_head_dtype: str = "checkpoint"
    isa: str = "default"
    context_buckets: tuple[int, ...] = ()

    def buckets(self, max_input_len: int) -> tuple[int, ...]:
        """The lengths, shortest first; the longest holds the longest prompt."""
        longest = max(max_input_len, SMALLEST_BUCKET)
        if not self.context_buckets:
            quarter = max(longest // 4, SMALLEST_BUCKET)
            return tuple(sorted({quarter, longest}))
        return tuple(sorted(set(self.context_buckets)))


_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "dtype": DTYPES,
    "lm_head_dtype": LM_HEAD_DTYPES,
    "isa": ISAS,
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
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return Options(**values)  # type: ignore[arg-type]


def option_problems(options: Mapping[str, JSONValue]) -> Iterator[Problem]:
    """Every option that is unknown or has a wrong value."""
    names = Options.__slots__
    for name, value in options.items():
        if name not in names:
            yield unknown_option(name, names, whose="`aotinductor`")
        elif name == "context_buckets":
            yield from _bucket_problems(value)
        elif value not in _ALLOWED[name]:
            allowed = join_words(_ALLOWED[name])
            yield bad_option(name, value, form=allowed, hint=f"use {allowed}")


def _bucket_problems(value: JSONValue) -> Iterator[Problem]:
    fits = (
        isinstance(value, list)
        and 0 < len(value) <= _MAX_BUCKETS
        and all(isinstance(size, int) and not isinstance(size, bool) for size in value)
        and all(int(str(size)) >= SMALLEST_BUCKET for size in value)
    )
    if not fits:
        yield bad_option(
            "context_buckets",
            value,
            form=f"1 to {_MAX_BUCKETS} numbers of tokens from {SMALLEST_BUCKET}",
            hint="write `context_buckets: [128, 512]`",
        )
