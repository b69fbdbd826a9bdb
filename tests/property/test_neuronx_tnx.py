"""Laws of lowering to Transformers NeuronX: the promise arrives, whatever is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmi_build.backends.neuronx.buckets import context_buckets, token_buckets
from lmi_build.backends.neuronx.calls import Made, plain
from lmi_build.backends.neuronx.serving_keys import serving_problems
from lmi_build.backends.neuronx.signatures import neuron_config_fields, signatures
from lmi_build.backends.neuronx.tnx import (
    AUTO_CLASS,
    compiler_flags,
    compiler_workers,
    device_needed,
    effective,
    explain_tnx,
    lower_tnx,
    tnx_disk_bytes,
    tnx_findings,
)
from lmi_build.backends.neuronx.tnx_loaders import tnx_loader, tnx_loaders
from lmi_build.backends.neuronx.tnx_models import tnx_models
from lmi_build.backends.neuronx.tnx_problems import tnx_problems
from lmi_build.backends.neuronx.tnx_request import (
    TnxRequest,
    shape_of,
    tnx_core_memory,
    tnx_host_memory,
)
from lmi_build.backends.neuronx.topology import core_memory_bytes, legal_sizes
from lmi_build.catalog.instances import instances
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.values.bounds import Bounds
from neuronx_sizes import ARCHITECTURES, geometries, llama

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

RELEASES = tuple(
    name for name, row in neuron_releases().items() if "tnx" in row.loaders
)
MACHINES = (
    "ml.inf2.8xlarge",
    "ml.inf2.24xlarge",
    "ml.inf2.48xlarge",
    "ml.trn1.32xlarge",
)
FLAGS = (
    "-O1",
    "--auto-cast-type=bf16",
    "--auto-cast=all",
    "--auto-cast",
    "matmult",
    "--model-type=unet",
    "--enable-saturate-infinity",
)
few = settings(max_examples=60)


@st.composite
def requests(draw: DrawFn, release: str | None = None) -> TnxRequest:
    """Any decoder on any release and machine; not all of them can be compiled."""
    row = neuron_releases()[release or draw(st.sampled_from(RELEASES))]
    instance = instances()[draw(st.sampled_from(MACHINES))]
    geometry = draw(geometries())
    options: dict[str, Any] = {}
    for name in ("fuse_qkv", "on_device_embedding", "qkv_tiling", "weight_tiling"):
        if name in row.options and draw(st.booleans()):
            options[name] = draw(st.booleans())
    return TnxRequest(
        bounds=Bounds(
            max_input_len=draw(st.integers(1, 8192)),
            max_output_len=draw(st.integers(1, 4096)),
            max_batch_size=draw(st.sampled_from([1, 1, 2, 4, 7, 16])),
        ),
        geometry=geometry,
        config={"model_type": geometry.model_type},
        release=row,
        instance=instance,
        tensor_parallel_size=draw(st.sampled_from(legal_sizes(instance))),
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        int8=draw(st.booleans()),
        options=options,
        has_device=draw(st.booleans()),
    )


def made(request: TnxRequest) -> dict[str, Any]:
    """Fields of the NeuronConfig of a call."""
    config = lower_tnx(request).arguments["neuron_config"]
    assert isinstance(config, Made)
    return dict(config.arguments)


@given(request=requests())
def test_every_promise_is_an_argument(request: TnxRequest) -> None:
    """Lengths, batch, cores and type arrive unchanged, as the release spells them."""
    call = lower_tnx(request)
    bounds, found = request.bounds, call.arguments

    positions = found["n_positions"]
    lengths = positions if isinstance(positions, list) else [positions]
    assert lengths == [bounds.max_input_len + bounds.max_output_len]
    assert isinstance(positions, list) == request.continuous
    assert found["batch_size"] == bounds.max_batch_size
    assert found["tp_degree"] == request.tensor_parallel_size
    assert found["amp"] == {"float32": "f32", "float16": "f16"}.get(
        request.dtype, "bf16"
    )
    assert call.loader == "tnx"


@given(request=requests())
def test_every_prompt_has_a_graph(request: TnxRequest) -> None:
    """No promised prompt is left to single tokens, where prompts have graphs."""
    buckets = lower_tnx(request).arguments.get("context_length_estimate")
    assume(request.takes_contexts)

    assert buckets is not None
    assert buckets == sorted(buckets)
    assert request.bounds.max_input_len <= buckets[-1] <= request.n_positions
    if not request.whole_prompts:
        assert buckets[-1] == request.bounds.max_input_len


@given(request=requests())
def test_graphs_are_what_the_library_makes_of_the_arguments(
    request: TnxRequest,
) -> None:
    """Its bucket rules, applied to the call itself, give the same number."""
    call, model = lower_tnx(request), tnx_models()[request.model_type]
    tokens = token_buckets(call.arguments["n_positions"])
    given = call.arguments.get("context_length_estimate")
    contexts = () if given is None else context_buckets(given, tokens)
    apart = not model.context_unrolled and request.geometry.num_layers > 1
    embedded = made(request).get("on_device_embedding", False)
    each = 1 + (1 + embedded if apart else 0)
    each += model.single_prompts and request.bounds.max_batch_size > 1

    assert call.num_graphs == len(tokens) + each * len(contexts)
    assert call.num_neffs == call.num_graphs
    assert effective(request)["token_buckets"] == list(tokens)
    assert effective(request)["context_buckets"] == list(contexts)


@given(request=requests())
def test_the_configuration_has_only_known_fields(request: TnxRequest) -> None:
    """Of the release's version, and of its loader except for the workers."""
    known = neuron_config_fields(request.release.tnx_row)
    told = {
        *request.release.options,
        "continuous_batching",
        "quant",
        "on_device_embedding",
        "compilation_worker_count",
    }

    fields = made(request)

    assert set(fields) <= set(known)
    assert set(fields) <= told
    assert all(value for value in fields.values())


@given(request=requests())
def test_batching_and_rounding_are_told_as_the_loader_does(request: TnxRequest) -> None:
    """One number of sequences, equal to the batch; 8 bits restored to the dtype."""
    fields, batch = made(request), request.bounds.max_batch_size

    assert ("continuous_batching" in fields) == request.continuous
    if request.continuous:
        config = plain(fields["continuous_batching"])
        assert config["arguments"] == {"batch_size_for_shared_caches": batch}
    assert ("quant" in fields) == request.int8
    if request.int8:
        assert plain(fields["quant"])["arguments"] == {
            "quant_dtype": "s8",
            "dequant_dtype": request.amp,
        }


@pytest.mark.parametrize("release", RELEASES)
@few
@given(data=st.data())
def test_each_release_is_left_as_its_loader_finds_it(
    release: str, data: st.DataObject
) -> None:
    """Weights split by rank with the graphs, or as they came beside them."""
    request = data.draw(requests(release))
    call, row = lower_tnx(request), neuron_releases()[release]
    names = [name for name, _ in call.steps]

    compiled, *saved = names
    arguments = dict(call.steps)
    assert compiled in {"to_neuron", "cpu_compile"}
    assert (compiled == "cpu_compile") == (
        not request.has_device and not device_needed(request)
    )
    assert row.cpu_compile or device_needed(request)
    if row.layout == "presharded":
        assert saved == ["save"]
        assert arguments["save"]["sharded_weights"] is True
        assert made(request)["on_device_embedding"] is True
        layers = request.geometry.num_layers
        shards = [path for path in call.files if path.endswith(".safetensors")]
        assert len(shards) == layers + 1
    else:
        assert saved[0] == "save"
        assert arguments["save"] == {"directory": {"path": "compiled"}}
        assert saved[1] == tnx_loader(row).weights
        assert "checkpoint/config.json" in call.files
    assert "compiled/VERSION" in call.files
    assert (call.model_class == AUTO_CLASS) == (
        tuple(map(int, row.version.split("."))) >= (0, 28)
    )


@given(request=requests())
def test_parameters_survive_json(request: TnxRequest) -> None:
    """A call is plain values, and the same request gives the same call."""
    call = lower_tnx(request)

    document = call.to_json()

    assert document == lower_tnx(request).to_json()
    assert plain(document) == document


@given(
    request=requests(),
    words=st.lists(st.sampled_from(FLAGS), max_size=4, unique=True),
)
def test_no_flag_swallows_another(request: TnxRequest, words: list[str]) -> None:
    """Each default is there once, unless the recipe itself says another value."""
    asked = replace(request, options={**request.options, "cc_flags": words})
    call = lower_tnx(asked)

    assert list(call.flags[: len(compiler_flags(asked))]) == list(compiler_flags(asked))
    for name in ("--auto-cast", "--model-type"):
        saying = [w for w in call.flags if w == name or w.startswith(f"{name}=")]
        given = [w for w in words if w == name or w.startswith(f"{name}=")]
        assert saying == (given or [f"{name}={_default(name)}"])
    joined = call.environment.get("NEURON_CC_FLAGS", "")
    for word in call.flags:
        name = word.partition("=")[0]
        assert word in joined or name not in joined
    assert set(words) <= set(call.flags)


def _default(name: str) -> str:
    return {"--auto-cast": "none", "--model-type": "transformer"}[name]


@given(request=requests())
def test_the_compiler_knows_the_cores_before_it_is_imported(
    request: TnxRequest,
) -> None:
    """The platform is in the environment and in the call."""
    call = lower_tnx(request)

    family = request.instance.name.split(".")[1]
    assert call.target == family
    assert call.environment["NEURON_PLATFORM_TARGET_OVERRIDE"] == family


@given(request=requests())
def test_workers_are_held_back_only_where_it_can_be_said(request: TnxRequest) -> None:
    """As many as fit the host, in versions that have the field."""
    found, host = compiler_workers(request), tnx_host_memory(request)
    knows = "compilation_worker_count" in neuron_config_fields(request.release.tnx_row)

    if found is not None:
        assert knows
        assert 0 < found < host.num_graphs
        assert host.needed(found) <= request.instance.memory_bytes
    assert made(request).get("compilation_worker_count") == found


@given(request=requests(), more=st.integers(1, 5000), batch=st.integers(1, 8))
def test_weights_and_cache_grow_with_every_bound(
    request: TnxRequest, more: int, batch: int
) -> None:
    """Longer prompts, longer answers and larger batches never take less."""
    bounds = request.bounds
    core = tnx_core_memory(request)
    for larger in (
        replace(bounds, max_input_len=bounds.max_input_len + more),
        replace(bounds, max_output_len=bounds.max_output_len + more),
        replace(bounds, max_batch_size=bounds.max_batch_size + batch),
    ):
        found = tnx_core_memory(replace(request, bounds=larger))
        assert found.cache_bytes > core.cache_bytes
        assert found.weight_bytes == core.weight_bytes


@given(request=requests())
def test_what_is_not_said_is_explained(request: TnxRequest) -> None:
    """Positions, buckets, graphs and memory have a line each, findings are words."""
    text = "\n".join(explain_tnx(request))

    for word in ("n_positions", "token buckets", "context buckets", "graphs", "cache"):
        assert word in text
    assert all(line and line[-1] != "." for line in tnx_findings(request))
    assert tnx_disk_bytes(request) > tnx_core_memory(request).weight_bytes


def mixtral(**changes: Any) -> TnxRequest:
    """Mixtral 8x7B on ml.trn1.32xlarge."""
    found = llama(
        geometry={"model_type": "mixtral", "architecture": ARCHITECTURES["mixtral"]},
        config={"model_type": "mixtral", "num_local_experts": 8},
        instance=instances()["ml.trn1.32xlarge"],
        tensor_parallel_size=8,
    )
    return replace(found, **changes)


def test_a_sound_recipe_has_no_problem() -> None:
    """What the tests below break one by one."""
    assert list(tnx_problems(llama())) == []
    assert list(tnx_problems(mixtral())) == []


def test_a_known_call() -> None:
    """Every argument of one recipe, spelt out."""
    call = lower_tnx(llama(int8=True))

    assert call.model_class == "transformers_neuronx.NeuronAutoModelForCausalLM"
    assert plain(call.arguments) == {
        "batch_size": 8,
        "amp": "bf16",
        "tp_degree": 8,
        "n_positions": [1536],
        "context_length_estimate": [128, 256, 512, 1024],
        "neuron_config": {
            "factory": "transformers_neuronx.config.NeuronConfig",
            "arguments": {
                "continuous_batching": {
                    "factory": "transformers_neuronx.config.ContinuousBatchingConfig",
                    "arguments": {"batch_size_for_shared_caches": 8},
                },
                "quant": {
                    "factory": "transformers_neuronx.config.QuantizationConfig",
                    "arguments": {"quant_dtype": "s8", "dequant_dtype": "bf16"},
                },
                "on_device_embedding": True,
            },
        },
    }
    assert call.num_neffs == 5
    assert call.steps == (
        ("to_neuron", {}),
        ("save", {"directory": {"path": "compiled"}, "sharded_weights": True}),
    )


def _release(name: str) -> Any:
    return neuron_releases()[f"djl-neuronx-{name}"]


def _bounds(**changes: Any) -> Bounds:
    return replace(llama().bounds, **changes)


BROKEN: dict[str, tuple[TnxRequest, str, str]] = {
    "qwen": (
        llama(geometry={"model_type": "qwen2", "architecture": "Qwen2ForCausalLM"}),
        "neuronx.architecture",
        "",
    ),
    "tp 6 on trn1": (
        llama(instance=instances()["ml.trn1.32xlarge"], tensor_parallel_size=6),
        "neuronx.topology",
        "tensor_parallel_size: 8",
    ),
    "more cores than there are": (
        llama(tensor_parallel_size=24),
        "neuronx.few-cores",
        "tensor_parallel_size: 12",
    ),
    "beams": (llama(bounds=_bounds(max_beam_width=4)), "neuronx.beams", "remove"),
    "packed tokens": (
        llama(bounds=_bounds(max_num_tokens=2048)),
        "neuronx.num-tokens",
        "remove",
    ),
    "a bucket over n_positions": (
        llama(options={"context_buckets": [512, 2048]}),
        "neuronx.context-bucket",
        "write 1024 for 2048",
    ),
    "buckets below the longest prompt": (
        llama(options={"context_buckets": [128, 512]}),
        "neuronx.context-bucket",
        "add 1024",
    ),
    "buckets that the release does not take": (
        llama(
            release=_release("0.27.0"),
            config={"model_type": "llama"},
            options={"context_buckets": [512, 1024]},
        ),
        "neuronx.context-bucket",
        "remove",
    ),
    "a mode that would fall back": (
        llama(options={"group_query_attention": "shard-over-batch"}),
        "neuronx.gqa-fallback",
        "shard-over-heads",
    ),
    "too large for its cores": (
        llama(tensor_parallel_size=1),
        "neuronx.core-memory",
        "tensor_parallel_size: 2",
    ),
    "too many requests for its cores": (
        llama(
            tensor_parallel_size=12,
            int8=True,
            bounds=_bounds(max_input_len=8192, max_batch_size=4096),
        ),
        "neuronx.core-memory",
        "max_batch_size",
    ),
    "a layout without continuous batching": (
        llama(bounds=_bounds(max_batch_size=1), options={"cache_layout": "BSH"}),
        "neuronx.cache-layout",
        "remove",
    ),
    "tiles that are not whole": (
        llama(
            geometry={"hidden_size": 4000, "head_dim": 125},
            options={"fuse_qkv": True, "qkv_tiling": True},
        ),
        "neuronx.tiling",
        "remove",
    ),
    "tiles of a fused MLP": (
        llama(
            geometry={"intermediate_size": 14400},
            options={"fuse_mlp": True, "weight_tiling": True},
        ),
        "neuronx.tiling",
        "one of the two",
    ),
    "an option that fails in 0.13": (
        llama(release=_release("0.32.0"), options={"fuse_mlp": True}),
        "neuronx.fused-mlp",
        "remove",
    ),
    "an uneven fused MLP": (
        llama(geometry={"intermediate_size": 14337}, options={"fuse_mlp": True}),
        "neuronx.fused-mlp",
        "remove",
    ),
    "a sequence that cores cannot share": (
        llama(
            options={"shard_over_sequence": True},
            instance=instances()["ml.trn1.32xlarge"],
            tensor_parallel_size=32,
            bounds=_bounds(max_output_len=511),
        ),
        "neuronx.shard-over-sequence",
        "remove",
    ),
    "a sequence of cores without groups": (
        llama(
            geometry={"num_key_value_heads": 32},
            options={"shard_over_sequence": True},
        ),
        "neuronx.shard-over-sequence",
        "remove",
    ),
    "positions that are not read": (
        llama(release=_release("0.29.0")),
        "neuronx.rope-scaling",
        "compile.release",
    ),
    "a window that batching breaks": (
        llama(
            geometry={
                "model_type": "mistral",
                "architecture": ARCHITECTURES["mistral"],
            },
            config={"model_type": "mistral", "sliding_window": 256},
        ),
        "neuronx.window",
        "within 256",
    ),
    "a head size that is not computed": (
        llama(geometry={"head_dim": 64}),
        "neuronx.head-size",
        "nxdi",
    ),
    "experts and cores": (
        mixtral(
            tensor_parallel_size=12,
            instance=instances()["ml.inf2.48xlarge"],
        ),
        "neuronx.experts",
        "tensor_parallel_size: 8",
    ),
    "8 bits that are scaled wrongly": (
        mixtral(int8=True),
        "neuronx.int8-model",
        "none",
    ),
    "a layout of attention that experts lack": (
        mixtral(options={"attention_layout": "BSH"}),
        "neuronx.attention-layout",
        "remove",
    ),
    "workers that nothing holds back": (
        llama(options={"compilation_worker_count": 2}),
        "neuronx.workers",
        "remove",
    ),
    "a type that is not computed in": (
        llama(dtype="float8_e4m3fn"),
        "neuronx.dtype",
        "bfloat16",
    ),
    "a model that the oldest release batches all the same": (
        llama(
            release=_release("0.26.0"),
            geometry={"model_type": "opt", "num_key_value_heads": 32},
        ),
        "neuronx.continuous",
        "compile.release",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_has_one_error_with_a_way_out(name: str) -> None:
    """One code, a dotted path and a hint with the value to write."""
    request, code, hint = BROKEN[name]

    problems = list(tnx_problems(request))

    assert [problem.code for problem in problems] == [code]
    problem = problems[0]
    assert problem.path.partition(".")[0] in {"bounds", "compile", "model", "quantize"}
    assert hint in problem.hint


@given(request=requests())
def test_what_passes_fits(request: TnxRequest) -> None:
    """A request without problems fits its cores, and keeps the mode it asks for."""
    problems = list(tnx_problems(request))
    assume(not problems)

    core, heads = tnx_core_memory(request), shape_of(request).heads

    room = core_memory_bytes(request.instance)
    assert core.weight_bytes + core.cache_bytes <= room
    assert heads.kv_width % request.tensor_parallel_size == 0
    lower_tnx(request)


@settings(max_examples=200)
@given(request=requests())
def test_lmi_makes_the_call_that_was_compiled(request: TnxRequest) -> None:
    """What its handler and loader make of our properties is the call itself."""
    assume(not list(tnx_problems(request)))

    call = lower_tnx(request)

    assert list(serving_problems(request.release, call, request.config)) == []


@given(request=requests())
def test_hints_about_memory_are_true(request: TnxRequest) -> None:
    """Where more cores or fewer requests are proposed, they fit."""
    bounds = replace(request.bounds, max_batch_size=64, max_input_len=8192)
    request = replace(request, tensor_parallel_size=2, bounds=bounds)
    told = [p for p in tnx_problems(request) if p.code == "neuronx.core-memory"]
    if not told:
        return
    hint = told[0].hint
    words = hint.replace("`", "").split(": ")

    if "tensor_parallel_size" in hint:
        better = replace(request, tensor_parallel_size=int(words[1]))
    elif "max_batch_size" in hint:
        bounds = replace(request.bounds, max_batch_size=int(words[1]))
        better = replace(request, bounds=bounds)
    elif "int8" in hint:
        better = replace(request, int8=True)
    else:
        return

    codes = {problem.code for problem in tnx_problems(better)}
    assert "neuronx.core-memory" not in codes


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"int8": True}, False),
        ({"release": neuron_releases()["djl-neuronx-0.31.0"]}, True),
    ],
)
def test_some_models_need_a_device(changes: dict[str, Any], *, needed: bool) -> None:
    """Without one only 0.13 compiles, of eight bits as well."""
    release = neuron_releases()["djl-neuronx-0.32.0"]
    request = replace(llama(release=release, has_device=False), **changes)

    assert device_needed(request) == needed
    assert lower_tnx(request).steps[0][0] == ("to_neuron" if needed else "cpu_compile")
    told = [line for line in tnx_findings(request) if "Neuron device" in line]
    assert bool(told) == (needed and request.release.cpu_compile)


def test_data_files_are_read_strictly() -> None:
    """Rows rise with the releases, and every model type is one that LMI knows."""
    assert list(tnx_loaders()) == sorted(tnx_loaders())
    assert set(tnx_models()) == set(ARCHITECTURES)
    assert {neuron_releases()[name].tnx_row for name in RELEASES} <= set(signatures())
    with pytest.raises(KeyError):
        tnx_loader(replace(neuron_releases()[RELEASES[0]], version="0.25.0"))
