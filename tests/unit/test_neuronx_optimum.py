"""What optimum-neuron refuses, what it is told, and what becomes of its folders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lmi_build.backends.neuronx.compile_plan import compile_plan
from lmi_build.backends.neuronx.models import neuron_models
from lmi_build.backends.neuronx.nxd_models import nxd_setup, nxdi_setup, tnx_setup
from lmi_build.backends.neuronx.nxd_signatures import (
    Argument,
    signature,
    signatures,
    version_key,
)
from lmi_build.backends.neuronx.optimum import (
    generation,
    inner_call,
    lower_optimum,
    neuron_block,
    optimum_findings,
    optimum_problems,
)
from lmi_build.backends.neuronx.optimum_nxd import nxd_files
from lmi_build.backends.neuronx.optimum_serving import (
    optimum_environment,
    optimum_properties,
    optimum_serve_start,
    optimum_start,
)
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.values.bounds import Bounds
from neuron_exports import folder, request

OLDER, NEWER = "djl-neuronx-0.30.0", "huggingface-vllm-neuronx-0.4.4"


def codes(release: str, **parts: Any) -> list[tuple[str, str]]:
    """Code and path of everything wrong."""
    model_type = parts.pop("model_type", "llama")
    found = optimum_problems(request(release, model_type, **parts))
    return [(problem.code, problem.path) for problem in found]


@pytest.mark.parametrize("method", ["int8", "gptq", "awq", "smoothquant"])
@pytest.mark.parametrize("release", [OLDER, NEWER])
def test_no_rounding(release: str, method: str) -> None:
    """It has no argument for it, in either generation."""
    assert codes(release, method=method) == [("neuronx.rounding", "quantize.method")]


def test_the_older_one_has_no_option_of_its_own() -> None:
    """Each argument follows from the recipe; a wrong name would be dropped."""
    problems = list(
        optimum_problems(
            request(OLDER, options={"sequence_length": 9, "fuse_qkv": True})
        )
    )
    assert [p.code for p in problems] == [
        "compile.owned-option",
        "compile.unknown-option",
    ]
    assert "bounds.max_input_len" in problems[0].hint


def test_options_of_the_newer_one_are_checked() -> None:
    """Near misses, kinds, what the recipe owns, and what would harm."""
    options = {
        "fused_qvk": True,
        "max_topk": "many",
        "tp_degree": 4,
        "output_logits": True,
    }
    problems = list(optimum_problems(request(NEWER, options=options)))
    assert [p.code for p in problems] == [
        "compile.unknown-option",
        "compile.bad-option",
        "compile.owned-option",
        "compile.owned-option",
    ]
    assert [p.hint for p in problems[:2]] == [
        "did you mean `fused_qkv`?",
        "write `max_topk: 256`",
    ]
    assert codes(NEWER, options={"fused_qkv": False, "max_topk": 64}) == []


def test_prompts_are_as_long_as_the_sequence() -> None:
    """Another length is an argument of the class, and would not compile."""
    path = "compile.options.max_context_length"
    for length in (1024, 1536):
        found = codes(NEWER, options={"max_context_length": length, "max_topk": 8})
        assert found == [("compile.owned-option", path)]
    assert codes(OLDER, options={"max_context_length": 8}) == [
        ("compile.unknown-option", path)
    ]


def test_a_model_that_is_batched_as_a_whole() -> None:
    """Mixtral's rows that pad a prompt would overwrite others."""
    assert codes(NEWER, model_type="mixtral") == [
        ("neuronx.static-batch", "bounds.max_batch_size")
    ]
    one = Bounds(max_input_len=8, max_output_len=8, max_batch_size=1)
    assert codes(NEWER, model_type="mixtral", bounds=one) == []


def test_two_cores_sample_on_the_host() -> None:
    """A fault of the runtime with continuous batches of Qwen."""
    arguments = [
        lower_optimum(request(NEWER, "qwen2", tensor_parallel_size=size)).arguments
        for size in (2, 4)
    ]
    sampling = [a["neuron_config"].arguments["on_device_sampling"] for a in arguments]
    assert sampling == [False, True]


def test_long_prompts_are_told() -> None:
    """One at a time the older one prefills half the sequence; the newer one all."""
    one = Bounds(max_input_len=1000, max_output_len=24, max_batch_size=1)
    assert "the last 488" in optimum_findings(request(OLDER, bounds=one))[0]
    assert "computed as 1536 tokens" in optimum_findings(request(NEWER))[0]
    assert optimum_findings(request(OLDER)) == ()


def test_what_transformers_neuronx_is_asked() -> None:
    """Each version passes on what it knows."""
    made = {
        name: inner_call(request(name)).arguments["neuron_config"].arguments
        for name in ("djl-neuronx-0.27.0", OLDER, "djl-neuronx-0.34.0")
    }
    assert [sorted(arguments) for arguments in made.values()] == [
        ["continuous_batching"],
        ["attention_layout", "continuous_batching"],
        ["attention_layout", "continuous_batching", "fuse_qkv"],
    ]


def older_folder() -> dict[str, Any]:
    """An export as LMI takes it."""
    asked = request(OLDER)
    block = dict(neuron_block(asked))
    return {
        "config.json": {"model_type": "llama", "neuron": block},
        "compiled/0123.neff": "graph",
        "checkpoint/config.json": {},
        "checkpoint/model.safetensors": "weights",
    }


def test_an_older_export_loads() -> None:
    """As it was made, with the properties of the same recipe."""
    asked = request(OLDER)
    for suffix in ("", "+4a9b2326"):
        files = older_folder()
        files["config.json"]["neuron"]["compiler_version"] += suffix
        verdict = optimum_start(folder(files), asked.release, optimum_properties(asked))
        assert (verdict.outcome, verdict.notes) == ("loads", ())


@pytest.mark.parametrize(
    ("change", "outcome", "says"),
    [
        ({"config.json": "{"}, "fails", "cannot be read"),
        ({"config.json": {"model_type": "llama"}}, "compiles", "no `neuron`"),
        ({"config.json": {"model_type": "mixtral"}}, "fails", "`mixtral`"),
        ({"compiled/0123.neff": None}, "fails", "no NEFF"),
    ],
)
def test_an_older_export_that_does_not_load(
    change: dict[str, Any], outcome: str, says: str
) -> None:
    """Each fault of the folder on its own."""
    asked = request(OLDER)
    files = {**older_folder(), **change}
    files = {path: content for path, content in files.items() if content is not None}
    verdict = optimum_start(folder(files), asked.release, optimum_properties(asked))
    assert (verdict.outcome, says in verdict.reason) == (outcome, True)


@pytest.mark.parametrize(
    ("name", "value", "outcome", "says"),
    [
        ("model_loader", "tnx", "elsewhere", "is tnx"),
        ("partition_schema", "", "fails", "partition_schema"),
        ("rolling_batch", "disable", "fails", "without a rolling batch"),
        ("n_positions", "2048", "fails", "`sequence_length` 1536"),
        ("max_rolling_batch_size", "8", "fails", "`batch_size` 4"),
        ("tensor_parallel_degree", "4", "fails", "`num_cores` 2"),
    ],
)
def test_properties_that_do_not_fit(
    name: str, value: str, outcome: str, says: str
) -> None:
    """Each property on its own."""
    asked = request(OLDER)
    properties = {**optimum_properties(asked), f"option.{name}": value}
    verdict = optimum_start(folder(older_folder()), asked.release, properties)
    assert (verdict.outcome, says in verdict.reason) == (outcome, True)


def test_weights_on_a_hub_are_no_artifact() -> None:
    """An export that names a hub's checkpoint has no weights of its own."""
    files = {
        path: content
        for path, content in older_folder().items()
        if not path.startswith("checkpoint")
    }
    asked = request(OLDER)
    properties = optimum_properties(asked)
    verdict = optimum_start(folder(files), asked.release, properties)
    assert verdict.outcome == "fails"
    files["config.json"]["neuron"]["checkpoint_id"] = "owner/name"
    verdict = optimum_start(folder(files), asked.release, properties)
    assert (verdict.outcome, "owner/name" in verdict.reason) == ("elsewhere", True)


def test_an_older_compiler_may_name_graphs_otherwise() -> None:
    """It is let through by the library, and told by us."""
    files = older_folder()
    files["config.json"]["neuron"]["compiler_version"] = "2.14.227.0"
    asked = request(OLDER)
    verdict = optimum_start(folder(files), asked.release, optimum_properties(asked))
    assert (verdict.outcome, len(verdict.notes)) == ("loads", 1)


def newer_folder() -> dict[str, Any]:
    """An export as the container of vLLM takes it."""
    asked = request(NEWER)
    export = {
        "optimum_neuron_version": asked.release.optimum_neuron,
        "neuronxcc_version": f"{asked.release.neuronx_cc}+82129205",
        "target": "trn1",
        "batch_size": 4,
        "sequence_length": 1536,
        "tp_degree": 2,
    }
    files: dict[str, Any] = dict.fromkeys(nxd_files(2), "bytes")
    return {**files, "config.json": {}, "neuron_config.json": export}


def test_a_newer_export_loads() -> None:
    """On both families of the same core."""
    asked = request(NEWER)
    for family in ("inf2", "trn1"):
        verdict = optimum_serve_start(
            folder(newer_folder()), asked.release, optimum_environment(asked), family
        )
        assert verdict.outcome == "loads"


@pytest.mark.parametrize(
    ("missing", "variables", "says"),
    [
        ("model.pt", {}, "model.pt"),
        ("neuron_config.json", {}, "searched"),
        ("config.json", {}, "config.json"),
        ("", {"SM_ON_MODEL": "owner/name"}, "owner/name"),
        ("", {"SM_ON_SEQUENCE_LENGTH": "4096"}, "1536"),
    ],
)
def test_a_newer_export_that_does_not_load(
    missing: str, variables: dict[str, str], says: str
) -> None:
    """Each fault on its own."""
    asked = request(NEWER)
    files = newer_folder()
    files.pop(missing, None)
    environment = {**optimum_environment(asked), **variables}
    verdict = optimum_serve_start(folder(files), asked.release, environment, "inf2")
    assert verdict.outcome in ("fails", "elsewhere")
    assert says in verdict.reason


def test_rows_of_signatures_are_whole() -> None:
    """Every default is of its kind, every name followed is an argument."""
    for row in signatures().values():
        known = {**row.arguments, **row.moe}
        for name, argument in known.items():
            if argument.default is not None:
                assert argument.takes(argument.default), (row.name, name)
            assert not argument.follows or argument.follows in known, (row.name, name)
    assert "async" in signature("nxdi", "0.1.1").arguments
    assert "async" not in signature("nxdi", "0.2.0").arguments
    assert signature("optimum", "0.4.4").name == "optimum-0.4.1"
    with pytest.raises(KeyError):
        signature("nxdi", "0.0.9")
    assert not Argument(kind="int").takes(value=True)


def test_every_release_knows_how_its_models_are_set_up() -> None:
    """A model type that a loader has is set up by a row of our own."""
    for release in neuron_releases().values():
        for name, model in neuron_models().items():
            if model.supported("nxdi", release):
                assert nxdi_setup(name) is not None, (release.name, name)
            if not model.supported("optimum", release):
                continue
            setup = tnx_setup if generation(release) == "tnx" else nxd_setup
            assert setup(name) is not None, (release.name, name)


def test_a_model_without_a_row() -> None:
    """A fault of the caller, who asks for model types before."""
    for release in (OLDER, NEWER):
        with pytest.raises(KeyError):
            lower_optimum(request(release, "gptj"))
    with pytest.raises(KeyError):
        inner_call(replace(request(OLDER), model_type="gptj"))
    assert version_key("0.0.24") < version_key("0.4")


@pytest.mark.parametrize(("release", "needed"), [(OLDER, True), (NEWER, False)])
def test_only_the_older_one_needs_a_device(release: str, needed: bool) -> None:  # noqa: FBT001
    """It looks for one in the system before it exports."""
    asked = request(release)
    plan = compile_plan(lower_optimum(asked), asked.release, num_cores=2)
    assert plan.device_needed == needed
