"""
The law that NeuronX artifacts stand on: three places say the same.

What is compiled, what `serving.properties` says, and what the release's own loader
makes of that file are written apart from each other; for any recipe they agree argument
by argument, and every bound arrives in each of them unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lmi_build.backends.java_properties import java_properties
from lmi_build.backends.neuronx.call_differences import (
    call_differences,
    effective_class,
)
from lmi_build.backends.neuronx.calls import plain
from lmi_build.backends.neuronx.handler_properties import OPTION_WORDS
from lmi_build.backends.neuronx.layout import neuron_block
from lmi_build.backends.neuronx.loader_call import loader_call
from lmi_build.backends.neuronx.serving_keys import serving_problems, serving_properties
from lmi_build.backends.neuronx.tnx import lower_tnx
from lmi_build.backends.neuronx.tnx_problems import tnx_problems
from lmi_build.backends.neuronx.tnx_request import TnxRequest
from lmi_build.backends.neuronx.topology import legal_sizes
from lmi_build.catalog.instances import instances
from lmi_build.package.properties import parse_properties, render_properties
from lmi_build.package.worker import make_manifest
from lmi_build.spi import Serving
from lmi_build.values.bounds import Bounds
from neuron_folders import TNX_RELEASES, front_of
from neuronx_sizes import ARCHITECTURES, geometries
from packed import sample_params, sample_recipe

if TYPE_CHECKING:
    from lmi_build.backends.neuronx.calls import NeuronCall
    from lmi_build.catalog.neuron_releases import NeuronRelease

MACHINES = ("ml.inf2.8xlarge", "ml.inf2.48xlarge", "ml.trn1.32xlarge")
# Says how many compilers run at a time, which no graph shows.
WORKERS = "compilation_worker_count"
# One law over whole recipes: many of them are refused, and each takes its time.
slow = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@st.composite
def served_requests(draw: st.DrawFn, release: NeuronRelease) -> TnxRequest:
    """A decoder that one release can be asked for, with options of its loader."""
    instance = instances()[draw(st.sampled_from(MACHINES))]
    geometry = draw(geometries())
    inputs, outputs = draw(st.integers(1, 4096)), draw(st.integers(1, 2048))
    options: dict[str, Any] = {}
    for name in sorted(set(release.options) & set(front_of(release).neuron_config)):
        if draw(st.integers(0, 5)):
            continue
        words = OPTION_WORDS.get(name)
        options[name] = draw(st.sampled_from(words) if words else st.booleans())
    if draw(st.booleans()):
        lengths = st.lists(st.integers(1, inputs), max_size=3)
        options["context_buckets"] = sorted({*draw(lengths), inputs})
    request = TnxRequest(
        bounds=Bounds(
            max_input_len=inputs,
            max_output_len=outputs,
            max_batch_size=draw(st.sampled_from([1, 2, 4, 7, 16, 32])),
        ),
        geometry=geometry,
        config={
            "model_type": geometry.model_type,
            "architectures": [ARCHITECTURES[geometry.model_type]],
        },
        release=release,
        instance=instance,
        tensor_parallel_size=draw(st.sampled_from(legal_sizes(instance))),
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        int8=draw(st.booleans()),
        options=options,
        has_device=draw(st.booleans()),
    )
    assume(not any(True for _ in tnx_problems(request)))
    return request


def marked(request: TnxRequest, call: NeuronCall) -> dict[str, Any]:
    """The root's `config.json` after the build."""
    block = neuron_block(request.release, call.arguments)
    return {**request.config, "neuron": block}


def without_workers(call: NeuronCall) -> dict[str, Any]:
    """The call's arguments, those of the graphs alone."""
    found: dict[str, Any] = plain(call.arguments)
    found["neuron_config"]["arguments"].pop(WORKERS, None)
    return found


@pytest.mark.parametrize("release", TNX_RELEASES, ids=lambda row: row.version)
@slow
@given(data=st.data())
def test_what_is_compiled_is_what_is_asked_for(
    release: NeuronRelease, data: st.DataObject
) -> None:
    """Class, folder, steps and every argument, through the written file."""
    request = data.draw(served_requests(release))
    call = lower_tnx(request)
    assert list(serving_problems(release, call, request.config)) == []

    text = render_properties(serving_properties(release, call, request.config))
    made = loader_call(front_of(release), java_properties(text), marked(request, call))

    assert plain(made.arguments) == without_workers(call)
    row = release.tnx_row
    assert call_differences(call.arguments, made.arguments, tnx_row=row) == ()
    kind = request.model_type
    assert effective_class(made.model_class, kind) == effective_class(
        call.model_class, kind
    )
    saved = [where["directory"]["path"] for _, where in call.steps if where]
    assert {made.graphs, made.folder} == set(saved)
    assert [name for name, _ in made.steps] == ["load", "to_neuron"]


@pytest.mark.parametrize("release", TNX_RELEASES, ids=lambda row: row.version)
@slow
@given(data=st.data())
def test_every_bound_arrives_unchanged(
    release: NeuronRelease, data: st.DataObject
) -> None:
    """In the call, in the file and in the manifest."""
    request = data.draw(served_requests(release))
    call, bounds = lower_tnx(request), request.bounds
    entries = serving_properties(release, call, request.config)
    recipe = sample_recipe(bounds=bounds)
    serving = Serving(
        handler="", requirements=(), properties=entries, engine_dir=".", settings={}
    )
    manifest = make_manifest(
        sample_params(recipe=recipe, serving=serving), [], ledger=None
    )
    told = parse_properties(render_properties(entries))
    positions = call.arguments["n_positions"]
    total = bounds.max_input_len + bounds.max_output_len

    assert positions in (total, [total])
    assert told["option.n_positions"] == str(total)
    assert manifest.bounds["max_seq_len"] == total
    assert call.arguments["batch_size"] == bounds.max_batch_size
    assert told["option.max_rolling_batch_size"] == str(bounds.max_batch_size)
    assert manifest.bounds["max_batch_size"] == bounds.max_batch_size
    contexts = call.arguments.get("context_length_estimate")
    if contexts is None:
        assert not request.takes_contexts
        return
    assert contexts[-1] >= bounds.max_input_len
    assert told["option.context_length_estimate"] == ",".join(map(str, contexts))
    assert manifest.bounds["max_input_len"] == bounds.max_input_len
