"""Laws of the calls of optimum-neuron and NxD Inference."""

from __future__ import annotations

import ast
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from lmi_build.backends.neuronx.calls import plain
from lmi_build.backends.neuronx.nxd_buckets import (
    cache_bytes_per_core,
    generated_buckets,
    nxd_heads,
)
from lmi_build.backends.neuronx.nxd_request import NxdRequest
from lmi_build.backends.neuronx.nxdi import (
    lower_nxdi,
    nxdi_buckets,
    nxdi_findings,
    nxdi_problems,
)
from lmi_build.backends.neuronx.optimum import (
    generation,
    inner_call,
    lower_optimum,
    optimum_findings,
    optimum_graphs,
    optimum_problems,
)
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.values.bounds import Bounds

LENGTHS = st.integers(1, 8192)
CORES = st.sampled_from([1, 2, 4, 8, 12, 16, 24, 32])
TNX_MODELS = ("bloom", "gpt2", "llama", "mistral", "opt")
NXD_MODELS = ("granite", "llama", "phi3", "qwen2", "qwen3", "smollm3", "mixtral")
NXDI_MODELS = ("dbrx", "llama", "mixtral")


def released(loader: str) -> list[Any]:
    """Releases with a loader."""
    return [row for row in neuron_releases().values() if loader in row.loaders]


@st.composite
def requests(draw: st.DrawFn, loader: str) -> NxdRequest:
    """A request that some release of a loader knows."""
    release = draw(st.sampled_from(released(loader)))
    models: tuple[str, ...] = NXDI_MODELS
    if loader == "optimum":
        models = TNX_MODELS if generation(release) == "tnx" else NXD_MODELS
    model = draw(st.sampled_from(models))
    batch = 1 if model == "mixtral" else draw(st.integers(1, 64))
    return NxdRequest(
        release=release,
        model_type=model,
        num_layers=draw(st.integers(1, 40)),
        bounds=Bounds(
            max_input_len=draw(LENGTHS),
            max_output_len=draw(LENGTHS),
            max_batch_size=batch,
        ),
        tensor_parallel_size=draw(CORES),
        family=draw(st.sampled_from(["inf2", "trn1"])),
        amp=draw(st.sampled_from(["f32", "f16", "bf16"])),
    )


@given(LENGTHS)
def test_generated_buckets_rise_to_the_last(longest: int) -> None:
    """They rise, end at the length itself, and pad to little more than double."""
    buckets = generated_buckets(longest)

    assert buckets[-1] == longest
    assert list(buckets) == sorted(set(buckets))
    assert all(b >= 128 for b in buckets[:-1])
    # The rounded exponent leaves out a power of two that is close to the end.
    steps = list(pairwise(buckets))
    assert all(high <= low * 2 * 2**0.5 + 1 for low, high in steps)


@given(st.integers(1, 128), st.integers(1, 64), CORES)
def test_heads_are_shared_evenly(queries: int, keys: int, cores: int) -> None:
    """Every core has as many query heads as another, and no head is lost."""
    assume(queries % keys == 0)
    heads = nxd_heads(cores, queries, keys)

    assert heads.num_attention_heads % cores == 0
    assert queries <= heads.num_attention_heads < queries + cores
    assert heads.num_key_value_heads >= keys
    assert heads.num_key_value_heads % cores == 0


@given(st.data(), st.integers(1, 4096), st.integers(1, 64))
def test_cache_grows_with_every_bound(
    data: st.DataObject, positions: int, batch: int
) -> None:
    """More positions or more requests never take less memory."""
    queries = data.draw(st.sampled_from([8, 32, 56, 64]))
    cores = data.draw(CORES)
    heads = nxd_heads(cores, queries, data.draw(st.sampled_from([1, 8, queries])))
    sizes = {
        "tensor_parallel_size": cores,
        "num_layers": 4,
        "head_dim": 64,
        "element_bytes": 2,
    }

    def need(length: int, requests: int) -> int:
        return cache_bytes_per_core(
            heads, positions=length, batch_size=requests, **sizes
        )

    now = need(positions, batch)
    assert need(positions + 1, batch) > now
    assert need(positions, batch + 1) > now


@given(requests("optimum"))
def test_every_bound_arrives_in_the_export(request: NxdRequest) -> None:
    """Lengths, batch, cores and type are in the call, and nothing is wrong."""
    assert list(optimum_problems(request)) == []
    call = lower_optimum(request)
    given_ = plain(call.arguments)
    if generation(request.release) == "nxd":
        given_ = given_["neuron_config"]["arguments"]
        assert "max_context_length" not in given_
        assert given_["tp_degree"] == request.tensor_parallel_size
        ranks = [name for name in call.files if "weights/tp" in name]
        assert len(ranks) == request.tensor_parallel_size
    else:
        assert given_["num_cores"] == request.tensor_parallel_size
        assert given_["auto_cast_type"] == request.amp
    assert given_["sequence_length"] == request.bounds.max_seq_len
    assert given_["batch_size"] == request.bounds.max_batch_size
    assert call.num_graphs == optimum_graphs(request).total


@given(requests("optimum"))
def test_older_exports_serve_the_whole_sequence(request: NxdRequest) -> None:
    """The last bucket is prompt and output; a prompt past the buckets is told."""
    assume(generation(request.release) == "tnx")
    inner = plain(inner_call(request).arguments)
    positions, batch = inner["n_positions"], request.bounds.max_batch_size
    continuous = request.model_type in ("llama", "mistral") and batch > 1

    assert (positions == [request.bounds.max_seq_len]) == continuous
    if not continuous:
        assert positions == request.bounds.max_seq_len
        longest = 0 if request.model_type == "gpt2" else positions // 2
        serial = any("one by one" in text for text in optimum_findings(request))
        assert serial == (request.bounds.max_input_len > longest)
    else:
        assert not any("one by one" in text for text in optimum_findings(request))
        assert optimum_graphs(request).total == len(("tokens", "prompts"))


@given(requests("nxdi"))
def test_every_bound_arrives_in_nxdi(request: NxdRequest) -> None:
    """Lengths, batch and cores are in the configuration; buckets end at the bounds."""
    assert list(nxdi_problems(request)) == []
    call = lower_nxdi(request)
    config = call.arguments["neuron_config"]
    contexts, tokens = nxdi_buckets(request)

    assert contexts[-1] == config["max_context_length"] == request.bounds.max_input_len
    assert tokens[-1] == config["seq_len"] == request.bounds.max_seq_len
    assert config["batch_size"] == request.bounds.max_batch_size
    assert config["tp_degree"] == request.tensor_parallel_size
    assert call.num_graphs == len(contexts) + len(tokens)
    assert ast.literal_eval(repr(plain(config))) == plain(config)
    cores = request.tensor_parallel_size
    assert config["sequence_parallel_enabled"] == all(b % cores == 0 for b in contexts)


@given(requests("nxdi"), st.lists(LENGTHS, max_size=5), st.lists(LENGTHS, max_size=5))
def test_given_buckets_are_those_that_are_compiled(
    request: NxdRequest, contexts: list[int], tokens: list[int]
) -> None:
    """Lists that end at the bounds are taken as they are; others are refused."""
    bounds = request.bounds
    options = {"context_buckets": contexts, "token_buckets": tokens}
    request = replace(request, options=options)
    fit = (
        bool(contexts)
        and bool(tokens)
        and max(contexts) == bounds.max_input_len
        and max(tokens) == bounds.max_seq_len
    )
    assert (list(nxdi_problems(request)) == []) == fit

    inside = [length for length in contexts if length < bounds.max_input_len]
    options = {"context_buckets": [bounds.max_input_len, *inside]}
    request = replace(request, options=options)
    assert list(nxdi_problems(request)) == []
    config = lower_nxdi(request).arguments["neuron_config"]
    assert config["context_encoding_buckets"] == sorted(options["context_buckets"])
    assert nxdi_buckets(request)[0] == tuple(config["context_encoding_buckets"])


@given(requests("nxdi"))
def test_prompts_that_would_be_cut_off_are_told(request: NxdRequest) -> None:
    """The whole sequence as the graph's length leaves nothing to cut off."""
    assert any("cut off" in text for text in nxdi_findings(request))

    whole = {"max_context_length": request.bounds.max_seq_len}
    request = replace(request, options=whole)
    assert list(nxdi_problems(request)) == []
    assert not any("cut off" in text for text in nxdi_findings(request))
    assert nxdi_buckets(request)[0][-1] == request.bounds.max_seq_len


@given(requests("nxdi"), st.sampled_from(["none", "int8"]))
def test_rounding_is_a_step_of_its_own(request: NxdRequest, method: str) -> None:
    """Rounded weights are made first; models with experts are not rounded."""
    request = replace(request, method=method)
    refused = method == "int8" and request.model_type != "llama"
    assert bool(list(nxdi_problems(request))) == refused
    if refused:
        return
    call = lower_nxdi(request)
    config = call.arguments["neuron_config"]

    assert config["quantized"] == (method == "int8")
    assert [name for name, _ in call.steps][-1] == "compile"
    assert len(call.steps) == 1 + (method == "int8")
