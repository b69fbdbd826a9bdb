"""What the built-in quantizer refuses, before a byte of the model is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.catalog.architectures import architectures, find_architecture
from lmi_build.checkpoint.formats.layout import refusals, width_problem
from lmi_build.decoders.decoder_config import check_config, check_tensors
from lmi_build.errors import Problem
from lmi_build.quantizers.options import DATA_FREE
from lmi_build.quantizers.targets import (
    TRANSPOSED_MODEL_TYPES,
    candidates,
    head_of,
    is_ignored,
    select,
)
from lmi_build.text import did_you_mean, join_words
from lmi_build.values.recipe import CalibrationSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.quantizers.targets import Linear
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec

METHODS = ("rtn", "gptq", "awq", "smoothquant", "int8", "fp8")
GPTQ_BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128)


def check(
    spec: QuantSpec, model: ModelFacts, scheme: QuantScheme, *, calibrates: bool
) -> Iterator[Problem]:
    """
    Yield every reason why a model cannot be quantized.

    Args:
        spec: What the recipe asks for; its method is one of `METHODS`.
        model: The model.
        scheme: What would be written.
        calibrates: Whether samples have to move through the decoder.
    """
    if calibrates:
        yield from _check_architecture(spec, model)
    if (
        model.geometry.model_type in TRANSPOSED_MODEL_TYPES
        and find_architecture(model.config) is None
    ):
        yield Problem(
            code="quantize.transposed",
            message=(
                f"`{model.geometry.architecture}` stores its linears transposed, and "
                "there is no map that says which"
            ),
            path="quantize.method",
            hint="use `method: none`",
            unsupported=True,
        )
    yield from _check_head(spec, model)
    yield from _check_numbers(spec, scheme)
    yield from _check_widths(spec, model, scheme)
    yield from _check_ignore(spec, model)
    if calibrates:
        yield from _check_calibration(spec, model)


def _check_architecture(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    names = {fact.name for fact in model.tensors}
    architecture = find_architecture(model.config, names)
    if architecture is not None:
        yield from check_config(architecture, model.config)
        yield from check_tensors(architecture, names)
        return
    free = join_words([name for name in METHODS if name in DATA_FREE])
    reason = "" if spec.method not in DATA_FREE else " with what needs calibration"
    yield Problem(
        code="quantize.architecture",
        message=(
            f"architecture `{model.geometry.architecture}` is not known to `builtin`; "
            f"known are {join_words(tuple(architectures()), last='and')}"
        ),
        path="quantize.method",
        hint=f"use `method:` {free}, which need no map of the architecture{reason}",
        unsupported=True,
    )


def _check_head(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    if not spec.lm_head:
        return
    architecture = find_architecture(model.config)
    shapes = {fact.name: (fact.dtype, fact.shape) for fact in model.tensors}
    if architecture is None or head_of(shapes, architecture) is None:
        yield Problem(
            code="quantize.head",
            message=(
                f"where the head of `{model.geometry.architecture}` is, or that readers"
                " take codes there, is not known"
            ),
            path="quantize.lm_head",
            hint="use `lm_head: false`",
            unsupported=True,
        )


def _check_numbers(spec: QuantSpec, scheme: QuantScheme) -> Iterator[Problem]:
    if spec.method in {"gptq", "rtn"} and spec.bits not in GPTQ_BITS:
        yield Problem(
            code="quantize.bits",
            message=f"{spec.method} cannot pack {spec.bits} bits",
            path="quantize.bits",
            hint="use 4 (or 2, 3, 8)",
        )
        return
    if not 0 < spec.damp_percent < 1:
        yield Problem(
            code="quantize.damp-percent",
            message=f"damp_percent {spec.damp_percent:g} is not between 0 and 1",
            path="quantize.damp_percent",
            hint="use 0.01, or 0.05 for little calibration text",
        )
    if spec.group_size < -1 or spec.group_size == 0:
        yield Problem(
            code="quantize.group-size",
            message=f"group_size {spec.group_size} is not a number of channels",
            path="quantize.group_size",
            hint=f"use {join_words(tuple(map(str, (*GROUP_SIZES, -1))))}",
        )
    for refusal in refusals(scheme, fmt=spec.format):
        yield Problem(
            code="quantize.format",
            message=refusal.message,
            path=f"quantize.{refusal.field}",
            hint=refusal.hint,
        )


def _check_widths(
    spec: QuantSpec, model: ModelFacts, scheme: QuantScheme
) -> Iterator[Problem]:
    size = scheme.group_size
    linears = linears_of(spec, model)
    if not linears:
        yield Problem(
            code="quantize.nothing",
            message="no linear layer is left to quantize",
            path="quantize.ignore",
            hint="remove patterns from `ignore`, or use `method: none`",
        )
        return
    if (
        size < -1
        or size == 0
        or (spec.method in {"gptq", "rtn"} and spec.bits not in GPTQ_BITS)
    ):
        return
    if size > 0:
        widths = {x.num_inputs: x.name for x in reversed(linears)}
        wrong = sorted(width for width in widths if width % size)
        if wrong:
            fits = [
                str(n) for n in GROUP_SIZES if not any(width % n for width in widths)
            ]
            yield Problem(
                code="quantize.group-size",
                message=(
                    f"group_size {size} does not divide the {wrong[0]} input channels "
                    f"of `{widths[wrong[0]]}` ({wrong[0]} % {size} = {wrong[0] % size})"
                ),
                path="quantize.group_size",
                hint=f"use {join_words((*fits, '-1'))}",
            )
            return
    for x in linears:
        problem = width_problem(x, scheme)
        if problem is not None:
            yield Problem(
                code="quantize.width",
                message=problem,
                path="quantize.ignore",
                hint=f"add `{x.name}` to `quantize.ignore`",
            )
            return


def linears_of(spec: QuantSpec, model: ModelFacts) -> tuple[Linear, ...]:
    """The linears of a model that a recipe quantizes."""
    shapes = {fact.name: (fact.dtype, fact.shape) for fact in model.tensors}
    return select(
        shapes,
        architecture=find_architecture(model.config),
        ignore=spec.ignore,
        lm_head=spec.lm_head,
    )


def _check_ignore(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    names = [fact.name.removesuffix(".weight") for fact in model.tensors]
    shapes = {fact.name: (fact.dtype, fact.shape) for fact in model.tensors}
    every = candidates(shapes, architecture=find_architecture(model.config))
    parts = {part for linear in every for part in (linear.name, f"{linear.block}.*")}
    for pattern in spec.ignore:
        if pattern == "lm_head" or any(is_ignored(name, [pattern]) for name in names):
            continue
        tail = [name for name in names if name.endswith(f".{pattern}")]
        near = f"*.{pattern}" if tail else did_you_mean(pattern, parts)
        yield Problem(
            code="quantize.ignore",
            message=f"`ignore` pattern `{pattern}` matches no module of the model",
            path="quantize.ignore",
            hint=f"did you mean `{near}`?" if near else "remove it",
        )


def _check_calibration(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    calibration = spec.calibration or CalibrationSpec()
    limit = model.geometry.max_tokens
    if calibration.max_seq_len > limit:
        yield Problem(
            code="quantize.calibration-length",
            message=(
                f"calibration sequences of {calibration.max_seq_len} tokens exceed the "
                f"model's {limit}"
            ),
            path="quantize.calibration.max_seq_len",
            hint=f"lower it to {limit}",
        )
