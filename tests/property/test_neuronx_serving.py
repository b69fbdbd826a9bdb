"""Laws of serving NeuronX: what was compiled is what the loader will ask for."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.backends.java_properties import java_properties
from lmi_build.backends.neuronx.call_differences import call_differences
from lmi_build.backends.neuronx.calls import Made
from lmi_build.backends.neuronx.loader_call import (
    AUTO_CLASS,
    loader_call,
    own_class,
    usual_context_lengths,
)
from lmi_build.backends.neuronx.serving_keys import serving_problems, serving_properties
from lmi_build.package.properties import parse_properties, render_properties
from neuron_folders import (
    LLAMA,
    TNX_RELEASES,
    front_of,
    neuron_call,
    reachable_calls,
)

if TYPE_CHECKING:
    from lmi_build.catalog.neuron_releases import NeuronRelease

RELEASES = pytest.mark.parametrize(
    "release", TNX_RELEASES, ids=[row.version for row in TNX_RELEASES]
)
MARKED = {**LLAMA, "neuron": {}}


@RELEASES
@settings(max_examples=40)
@given(data=st.data())
def test_the_loader_repeats_the_call(
    release: NeuronRelease, data: st.DataObject
) -> None:
    """Argument by argument, from the file as both of LMI's readers see it."""
    call, rolling = data.draw(reachable_calls(release))
    text = render_properties(serving_properties(release, call, LLAMA, rolling=rolling))
    made = loader_call(front_of(release), java_properties(text), MARKED)
    theirs = dict(made.arguments)
    ours = {**call.arguments}

    assert theirs == ours
    assert made.graphs == "compiled"
    assert made.folder == front_of(release).weights_dir
    assert made.model_class in {AUTO_CLASS, own_class("llama")}
    assert parse_properties(text) == java_properties(text)


@RELEASES
@settings(max_examples=40)
@given(data=st.data())
def test_only_what_a_release_reads_is_written(
    release: NeuronRelease, data: st.DataObject
) -> None:
    """No key of another release is in the file, and nothing is left to the server."""
    call, rolling = data.draw(reachable_calls(release))
    entries = serving_properties(release, call, LLAMA, rolling=rolling)
    front = front_of(release)
    read = {f"option.{name}" for name in (*front.reads, *front.neuron_config)}

    assert set(entries) <= read | {"engine", "option.entryPoint", "batch_size"}
    assert {"option.rolling_batch", "option.n_positions", "option.dtype"} <= set(
        entries
    )
    assert entries["option.rolling_batch"] != "vllm"
    if front.recommends:
        assert entries["option.rolling_batch"] != "auto"


@RELEASES
@settings(max_examples=40)
@given(data=st.data())
def test_another_call_is_refused(release: NeuronRelease, data: st.DataObject) -> None:
    """A change that the properties cannot say is a problem, and never served."""
    call, rolling = data.draw(reachable_calls(release))
    config = dict(call.arguments["neuron_config"].arguments)
    config[data.draw(st.sampled_from(UNSERVED))] = True
    changed = neuron_call(release)
    arguments: dict[str, Any] = {
        **call.arguments,
        "neuron_config": Made(
            factory="transformers_neuronx.config.NeuronConfig", arguments=config
        ),
    }
    object.__setattr__(changed, "arguments", arguments)
    problems = list(serving_problems(release, changed, LLAMA, rolling=rolling))

    assert [problem.code for problem in problems] == ["neuronx.option-unserved"]
    with pytest.raises(ValueError, match="no graph"):
        serving_properties(release, changed, LLAMA, rolling=rolling)


# Options of NeuronConfig that no release's loader passes on.
UNSERVED = ["sequence_parallel_norm", "attn_output_transposed", "log_softmax_scores"]


@given(n_positions=st.integers(1, 1 << 20))
def test_usual_lengths_end_with_the_longest(n_positions: int) -> None:
    """They grow, the last is the whole, and each but the first two doubles."""
    found = usual_context_lengths(n_positions)

    assert list(found) == sorted(set(found))
    assert found[-1] == n_positions
    assert all(2 * a == b for a, b in pairwise(found[1:-1]))


@settings(max_examples=40)
@given(data=st.data())
def test_defaults_are_no_difference(data: st.DataObject) -> None:
    """A call with a default written out builds the same graphs."""
    release = TNX_RELEASES[0]
    call, _ = data.draw(reachable_calls(release))
    config = call.arguments["neuron_config"]
    plain = {"fuse_mlp": False, "cast_logits_dtype": "float32", "qkv_tiling": False}
    written = Made(factory=config.factory, arguments={**plain, **config.arguments})
    arguments = {**call.arguments, "neuron_config": written}
    row = release.tnx_row

    assert call_differences(call.arguments, arguments, tnx_row=row) == ()
    other = {**call.arguments, "tp_degree": 64}
    assert [d.name for d in call_differences(other, arguments, tnx_row=row)] == [
        "tp_degree"
    ]
