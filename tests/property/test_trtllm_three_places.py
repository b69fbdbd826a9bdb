"""One number of a recipe in the command, the properties and the manifest."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmi_build.backends.trtllm.backend import PROVIDER
from lmi_build.catalog.releases import releases
from lmi_build.package.stage import package_params
from lmi_build.values.bounds import Bounds
from lmi_build.values.recipe import CompileSpec
from packed import HOST, KEY, sample_facts, sample_recipe
from trtllm_recipes import LLAMA, SCHEMES

if TYPE_CHECKING:
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe

# Images that load an engine: three places exist.
SERVED = tuple(
    name
    for name, row in releases().items()
    if row.published and row.lmi and "engine" in row.artifacts
)
# Our name to the builder's option, where they are the same number.
OPTIONS = ("max_input_len", "max_output_len", "max_seq_len", "max_batch_size")
# What loads the engine, whatever its numbers are.
CONTROL = {
    "engine",
    "option.async_mode",
    "option.entryPoint",
    "option.mpi_mode",
    "option.pipeline_parallel_degree",
    "option.rolling_batch",
}
MODEL = sample_facts(geometry=LLAMA, config={"rms_norm_eps": 1e-5}, dtype="float16")

bounds = st.builds(
    Bounds,
    max_input_len=st.integers(1, 20000),
    max_output_len=st.integers(1, 8000),
    max_batch_size=st.integers(1, 256),
    max_num_tokens=st.none() | st.integers(64, 60000),
    max_beam_width=st.integers(1, 4),
)


def recipe_of(release: str, wanted: Bounds, ranks: int) -> Recipe:
    """A recipe for an engine on eight A100."""
    return sample_recipe(
        bounds=wanted,
        compile=CompileSpec(
            backend="tensorrt-llm",
            target="ml.p4d.24xlarge",
            release=release,
            tensor_parallel_size=ranks,
        ),
    )


def told(arguments: list[str]) -> dict[str, str]:
    """Options with a value, by name."""
    pairs = itertools.pairwise(arguments)
    return {name[2:]: value for name, value in pairs if name.startswith("--")}


def lowered(recipe: Recipe, model: ModelFacts, scheme: str) -> tuple[Any, Any, Any]:
    """The command's options, the properties, and the manifest's bounds."""
    weights = SCHEMES[scheme]
    stages = PROVIDER.stages(recipe, model, weights, HOST)
    engine: Any = stages[-1].params
    serving = PROVIDER.serving(recipe, model, weights, HOST, {})
    manifest: Any = package_params(
        recipe=recipe,
        facts=model,
        scheme=weights,
        serving=serving,
        keys={"fetch": KEY, "compile": KEY},
        tools={},
        handler_digest=None,
        architecture="x86_64",
    )
    command = told(engine["builds"][0]["arguments"])
    return command, serving.properties, manifest["bounds"]


@pytest.mark.parametrize("release", SERVED)
@settings(max_examples=25)
@given(
    wanted=bounds,
    ranks=st.sampled_from([1, 2, 8]),
    scheme=st.sampled_from(["none", "w8a8-dynamic"]),
)
def test_a_bound_is_one_number_in_three_places(
    release: str, wanted: Bounds, ranks: int, scheme: str
) -> None:
    """What is not refused is built, served and recorded as the recipe says it."""
    recipe = recipe_of(release, wanted, ranks)
    assume(not list(PROVIDER.check(recipe, MODEL, SCHEMES[scheme])))

    command, properties, recorded = lowered(recipe, MODEL, scheme)

    for name in (*OPTIONS, "max_num_tokens", "max_beam_width"):
        asked = getattr(wanted, name)
        if asked is not None:
            assert recorded[name] == asked, name
        if name in command:
            assert command[name] == str(recorded[name]), name
        key = releases()[release].properties.get(name)
        if key is not None:
            assert properties[f"option.{key}"] == str(recorded[name]), name
    assert {"max_input_len", "max_batch_size", "max_num_tokens"} <= set(command)
    assert ("max_seq_len" in command) != ("max_output_len" in command)


@pytest.mark.parametrize("release", SERVED)
def test_no_key_is_written_that_the_release_ignores(release: str) -> None:
    """A bound that the image does not read has no line."""
    wanted = Bounds(max_input_len=1000, max_output_len=100, max_batch_size=8)
    _, properties, _ = lowered(recipe_of(release, wanted, 1), MODEL, "none")

    read = {f"option.{key}" for key in releases()[release].properties.values()}
    assert set(properties) <= read | CONTROL
