"""What `compile.options` and `serve.options` may say for vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.problems import bad_option, unknown_option
from lmi_build.errors import Problem
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.catalog.vllm_releases import Handler
    from lmi_build.digest import JSONValue

DTYPES = ("float16", "bfloat16", "float32")
_FLAG = "`true` or `false`"
# What the handlers know, with the form of its value and an example.
COMPILE_OPTIONS: Mapping[str, tuple[str, str]] = {
    "dtype": (join_words(DTYPES), "float16"),
}
SERVE_OPTIONS: Mapping[str, tuple[str, str]] = {
    "gpu_memory_utilization": ("a number above 0 and below 1", "0.9"),
    "enforce_eager": (_FLAG, "true"),
    "enable_prefix_caching": (_FLAG, "true"),
    "enable_chunked_prefill": (_FLAG, "true"),
}


def compile_option_problems(options: Mapping[str, JSONValue]) -> Iterator[Problem]:
    """Everything wrong with `compile.options`."""
    yield from _problems(options, COMPILE_OPTIONS, "compile", "vLLM's folder")


def serve_option_problems(
    options: Mapping[str, JSONValue], handler: Handler | None = None
) -> Iterator[Problem]:
    """
    Everything wrong with `serve.options`.

    Args:
        options: They are.
        handler: What will read them; None where it is not known yet.
    """
    problems = [*_problems(options, SERVE_OPTIONS, "serve", "the server of vLLM")]
    yield from problems
    if problems or handler is None:
        return
    for name, value in options.items():
        if not handler.reads(name):
            yield Problem(
                code="vllm.option-ignored",
                message=f"the handler `{handler.name}` reads no `{name}`",
                path=f"serve.options.{name}",
                hint="remove the line, or choose a newer release",
            )
        elif value is False and handler.drops_false and name != "enforce_eager":
            yield Problem(
                code="vllm.option-ignored",
                message=f"the handler `{handler.name}` passes on no `{name}: false`;"
                " vLLM's own default decides",
                path=f"serve.options.{name}",
                hint="remove the line, or use `release: djl-lmi-0.36.0`",
            )


def _problems(
    options: Mapping[str, JSONValue],
    known: Mapping[str, tuple[str, str]],
    section: str,
    whose: str,
) -> Iterator[Problem]:
    for name, value in options.items():
        if name not in known:
            yield unknown_option(name, known, whose=whose, section=section)
        elif not _fits(value, known[name][0]):
            form, example = known[name]
            hint = f"write `{name}: {example}`"
            yield bad_option(name, value, form=form, hint=hint, section=section)


def _fits(value: JSONValue, form: str) -> bool:
    if form == _FLAG:
        return isinstance(value, bool)
    if form == COMPILE_OPTIONS["dtype"][0]:
        return value in DTYPES
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < float(str(value)) < 1
