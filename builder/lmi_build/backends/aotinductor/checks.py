"""What `aotinductor` cannot build, said before anything is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.problems import (
    beam_problems,
    own_code_problems,
    single_engine_problems,
    unsupported,
)
from lmi_build.catalog.architectures import architectures, find_architecture
from lmi_build.decoders.decoder_config import check_config
from lmi_build.errors import Problem
from lmi_build.text import join_words
from lmi_build.values.quant import PACKINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

TARGETS = ("cpu", "cuda")
READ_PACKINGS = tuple(name for name in PACKINGS if name != "float-quantized")
BITS = (4, 8)


def target_problems(recipe: Recipe) -> Iterator[Problem]:
    """Every reason why the target cannot be built for."""
    spec = recipe.compile
    if spec.target not in TARGETS:
        yield unsupported(
            f"`aotinductor` builds for {join_words(TARGETS)}, not for `{spec.target}`",
            "compile.target",
            "set `target: cpu`",
        )
    yield from single_engine_problems(
        spec, backend="aotinductor", engine_of="`aotinductor`"
    )


def built_architectures() -> tuple[str, ...]:
    """Every architecture that is built: those of the map without experts."""
    known = architectures().items()
    return tuple(name for name, arch in known if not arch.router)


def architecture_problems(recipe: Recipe, model: ModelFacts) -> Iterator[Problem]:
    """Every reason why the model cannot be computed."""
    found = find_architecture(model.config) if model.config else None
    name = model.geometry.architecture
    if name not in built_architectures():
        yield unsupported(
            f"the model's architecture `{name}` is not supported by `aotinductor`",
            "model.source",
            f"use a model of {join_words(built_architectures())}",
        )
    elif found is not None:
        for problem in check_config(found, model.config):
            yield unsupported(
                problem.message.replace("`builtin`", "`aotinductor`"),
                "model.source",
                f"use a model of {join_words(built_architectures())} without it",
            )
    yield from own_code_problems(recipe, backend="aotinductor")


def scheme_problems(scheme: QuantScheme) -> Iterator[Problem]:
    """Every reason why the weights cannot be read."""
    if scheme.packing not in READ_PACKINGS:
        yield unsupported(
            f"`aotinductor` does not read weights packed as `{scheme.packing}`",
            "quantize.method",
            f"use {join_words(READ_PACKINGS[1:])}",
        )
    elif scheme.packing != "none" and scheme.weight_bits not in BITS:
        yield unsupported(
            f"{scheme.weight_bits}-bit weights are not supported by `aotinductor`",
            "quantize.bits",
            "set `bits: 4` or `bits: 8`",
        )


def bound_problems(recipe: Recipe, model: ModelFacts) -> Iterator[Problem]:
    """Every bound that no graph can keep."""
    bounds = recipe.bounds
    yield from beam_problems(recipe)
    given = bounds.max_num_tokens
    if given is not None and given < bounds.max_input_len:
        yield Problem(
            code="bounds.num-tokens",
            message=f"{given} tokens of one pass are too few: `aotinductor`"
            f" computes a prompt of up to {bounds.max_input_len} in one",
            path="bounds.max_num_tokens",
            hint="remove the line",
        )
    arch = architectures().get(model.geometry.architecture)
    positions = model.geometry.max_position_embeddings
    if arch is not None and arch.positions and bounds.max_seq_len > positions:
        yield Problem(
            code="compile.too-few-positions",
            message=f"the model has {positions} positions, the bounds ask for"
            f" {bounds.max_seq_len}",
            path="bounds",
            hint=f"lower `bounds` to {positions} tokens together",
        )
