"""What NxD Inference refuses, what it is told, and what becomes of its folders."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

import pytest

from lmi_build.backends.neuronx.calls import plain
from lmi_build.backends.neuronx.nxd_buckets import generated_buckets, nxd_heads
from lmi_build.backends.neuronx.nxdi import (
    lower_nxdi,
    neuron_config,
    nxdi_files,
    nxdi_findings,
    nxdi_problems,
)
from lmi_build.backends.neuronx.nxdi_serving import (
    nxdi_properties,
    nxdi_start,
    vllm_config,
)
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.values.bounds import Bounds
from neuron_exports import CONFIG, folder, request

RELEASE = "djl-neuronx-0.34.0"


def problems(**parts: Any) -> list[tuple[str, str]]:
    """Code and path of everything wrong."""
    model_type = parts.pop("model_type", "llama")
    found = nxdi_problems(request(RELEASE, model_type, **parts))
    return [(problem.code, problem.path) for problem in found]


@pytest.mark.parametrize(
    ("method", "model_type", "refused"),
    [
        ("none", "mixtral", False),
        ("int8", "llama", False),
        ("int8", "mixtral", True),
        ("gptq", "llama", True),
        ("awq", "llama", True),
        ("smoothquant", "llama", True),
    ],
)
def test_rounding(method: str, model_type: str, refused: bool) -> None:  # noqa: FBT001
    """Float weights of dense models become int8; no other checkpoint is read."""
    found = problems(method=method, model_type=model_type)
    assert found == ([("neuronx.rounding", "quantize.method")] if refused else [])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"fuse_qkv": True}, "compile.unknown-option"),
        ({"fused_qkv": 1}, "compile.bad-option"),
        ({"seq_len": 128}, "compile.owned-option"),
        ({"context_encoding_buckets": [128]}, "compile.owned-option"),
        ({"async": True}, "compile.owned-option"),
        ({"save_sharded_checkpoint": False}, "compile.owned-option"),
        ({"context_buckets": []}, "compile.bad-option"),
        ({"context_buckets": [True]}, "compile.bad-option"),
        ({"context_buckets": [128, 512]}, "neuronx.bucket-end"),
        ({"token_buckets": [128, 4096]}, "neuronx.bucket-end"),
        ({"token_buckets": [1536], "enable_bucketing": False}, "neuronx.bucket-end"),
        ({"max_context_length": 2000}, "neuronx.context-length"),
        ({"capacity_factor": 2.0}, "compile.unknown-option"),
    ],
)
def test_options(options: dict[str, Any], code: str) -> None:
    """Each of them is refused by name, with its path."""
    assert problems(options=options) == [
        (code, f"compile.options.{next(iter(options))}")
    ]


def test_experts_have_arguments_of_their_own() -> None:
    """The same name is right for a model that has them."""
    assert problems(model_type="mixtral", options={"capacity_factor": 2.0}) == []


def test_sequence_parallel_follows_from_the_buckets() -> None:
    """It is on where every bucket divides, off with a word where one does not."""
    odd = Bounds(max_input_len=1001, max_output_len=23, max_batch_size=2)
    assert neuron_config(request(RELEASE))["sequence_parallel_enabled"] is True
    asked = request(RELEASE, bounds=odd, tensor_parallel_size=8)
    assert neuron_config(asked)["sequence_parallel_enabled"] is False
    assert any("1001" in text for text in nxdi_findings(asked))
    forced = {"sequence_parallel_enabled": True}
    found = list(nxdi_problems(replace(asked, options=forced)))
    assert [p.code for p in found] == ["neuronx.sequence-parallel"]
    assert "1008" in found[0].hint


def test_newer_versions_write_weights_only_when_asked() -> None:
    """From 0.3 on the argument's default is the other way round."""
    asked = request(RELEASE)
    assert "save_sharded_checkpoint" not in neuron_config(asked)
    newer = replace(asked, release=replace(asked.release, nxdi="0.9.0"))
    assert neuron_config(newer)["save_sharded_checkpoint"] is True
    assert list(nxdi_problems(newer)) == []
    assert lower_nxdi(newer).flags == ()
    assert any("ends with an error" in text for text in nxdi_findings(newer))


def test_generated_buckets_of_odd_lengths() -> None:
    """A power of two close to the end is left out."""
    assert generated_buckets(100) == (100,)
    assert generated_buckets(128) == (128,)
    assert generated_buckets(513) == (128, 256, 513)
    assert generated_buckets(1500) == (128, 256, 512, 1024, 1500)


@pytest.mark.parametrize(
    ("cores", "queries", "keys", "mode", "made"),
    [
        (8, 32, 8, "even", (32, 8)),
        (32, 56, 8, "replicate-to-tp-degree", (64, 32)),
        (12, 32, 8, "convert-to-mha", (36, 36)),
        (24, 40, 40, "mha", (48, 48)),
    ],
)
def test_heads(cores: int, queries: int, keys: int, mode: str, made: Any) -> None:
    """Examples of the library's own, and of the instances' odd sizes."""
    heads = nxd_heads(cores, queries, keys)
    assert (heads.mode, heads.num_attention_heads, heads.num_key_value_heads) == (
        mode,
        *made,
    )


@pytest.mark.parametrize("method", ["none", "int8"])
def test_vllm_makes_the_configuration_that_was_compiled(method: str) -> None:
    """But for what only the compiled model knows."""
    asked = request(RELEASE, method=method, options={"fused_qkv": True})
    properties = nxdi_properties(asked)
    override = ast.literal_eval(properties["option.override_neuron_config"])
    assert override == {"max_context_length": 1024, "fused_qkv": True}
    made = vllm_config(properties)
    ours = dict(plain(neuron_config(asked)))
    for name in ("quantized", "quantized_checkpoints_path"):
        made.pop(name, None)
        ours.pop(name, None)
    for name in ("quantization_dtype", "quantization_type"):
        ours.pop(name, None)
    assert made == ours


def test_the_override_is_there_when_it_is_empty() -> None:
    """It is asked for its items whatever it is."""
    whole = request(RELEASE, options={"max_context_length": 1536})
    assert nxdi_properties(whole)["option.override_neuron_config"] == "{}"


def compiled() -> dict[str, Any]:
    """A compiled model's folder."""
    stored = {**plain(neuron_config(request(RELEASE))), "save_sharded_checkpoint": True}
    files: dict[str, Any] = dict.fromkeys(nxdi_files(2), "bytes")
    return {
        **files,
        "config.json": CONFIG,
        "neuron_config.json": {"neuron_config": stored},
    }


def verdict(files: dict[str, Any], **properties: str | None) -> Any:
    """What LMI does with it."""
    asked = request(RELEASE)
    entries: dict[str, Any] = {**nxdi_properties(asked)}
    for name, value in properties.items():
        entries[f"option.{name}"] = value
    given = {name: value for name, value in entries.items() if value is not None}
    return nxdi_start(folder(files), asked.release, given)


def test_a_compiled_model_loads() -> None:
    """As it was made, with the properties of the same recipe."""
    assert verdict(compiled()).outcome == "loads"


@pytest.mark.parametrize(
    ("properties", "outcome", "says"),
    [
        ({"model_loader": "tnx"}, "elsewhere", "is tnx"),
        ({"rolling_batch": "auto"}, "elsewhere", "is auto"),
        ({"override_neuron_config": None}, "fails", "items"),
        ({"override_neuron_config": "{'a': true}"}, "fails", "literal"),
        ({"override_neuron_config": "[1]"}, "fails", "mapping"),
        ({"n_positions": "many"}, "fails", "cannot be read"),
        ({"n_positions": "4096"}, "fails", "`seq_len` 1536"),
        ({"max_rolling_batch_size": "8"}, "fails", "`batch_size` 4"),
        ({"tensor_parallel_degree": "4"}, "fails", "`tp_degree` 2"),
        (
            {"override_neuron_config": "{'max_context_length': 512}"},
            "fails",
            "`max_context_length` 512",
        ),
        (
            {"override_neuron_config": "{'on_device_sampling_config': None}"},
            "fails",
            "on_device_sampling_config",
        ),
    ],
)
def test_properties_that_do_not_fit(
    properties: dict[str, str | None], outcome: str, says: str
) -> None:
    """Each on its own."""
    found = verdict(compiled(), **properties)
    assert (found.outcome, says in found.reason) == (outcome, True), found


@pytest.mark.parametrize(
    ("path", "content", "outcome", "says"),
    [
        ("model.pt", None, "compiles", "model.pt"),
        ("neuron_config.json", None, "compiles", "neuron_config.json"),
        ("neuron_config.json", {}, "compiles", "says nothing"),
        ("weights/tp1_sharded_checkpoint.safetensors", None, "compiles", "tp1"),
        ("config.json", None, "fails", "config.json"),
        ("config.json", {"architectures": ["MistralForCausalLM"]}, "fails", "Mistral"),
    ],
)
def test_folders_that_do_not_load(
    path: str, content: Any, outcome: str, says: str
) -> None:
    """Each fault on its own; most make vLLM compile without being asked."""
    files = {**compiled(), path: content}
    files = {name: value for name, value in files.items() if value is not None}
    found = verdict(files)
    assert (found.outcome, says in found.reason) == (outcome, True), found


def test_weights_that_were_never_split() -> None:
    """The folder holds no checkpoint that they could be split from."""
    files = compiled()
    files["neuron_config.json"]["neuron_config"]["save_sharded_checkpoint"] = False
    assert verdict(files).outcome == "fails"


def test_every_release_with_the_loader_is_one_of_lmi() -> None:
    """Its vLLM is that of LMI; another container would need another override."""
    found = {r.container for r in neuron_releases().values() if "nxdi" in r.loaders}
    assert found == {"djl-neuronx"}


def test_branches_whose_handler_may_not_start() -> None:
    """From 0.33 on it imports a name from where its vLLM does not have it."""
    told = {
        name: any("StoreBoolean" in text for text in nxdi_findings(request(name)))
        for name in ("djl-neuronx-0.32.0", "djl-neuronx-0.33.0", RELEASE)
    }
    assert list(told.values()) == [False, True, True]
