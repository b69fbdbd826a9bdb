"""The drivers of optimum-neuron and NxD Inference, with libraries that refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from lmi_build.backends.folder import local_folder
from lmi_build.backends.neuronx.compile_checks import build_problems
from lmi_build.backends.neuronx.nxdi import lower_nxdi
from lmi_build.backends.neuronx.nxdi_serving import nxdi_properties, nxdi_start
from lmi_build.backends.neuronx.optimum import (
    generation,
    inner_call,
    lower_optimum,
    neuron_block,
)
from lmi_build.backends.neuronx.optimum_serving import (
    optimum_environment,
    optimum_properties,
    optimum_serve_start,
    optimum_start,
)
from lmi_build.catalog.neuron_releases import neuron_releases
from neuron_exports import (
    faults,
    lowered,
    plan_of,
    request,
    run_export,
    start,
    write_model,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.backends.neuronx.nxd_request import NxdRequest

OLDER = [
    name
    for name, row in neuron_releases().items()
    if "optimum" in row.loaders and generation(row) == "tnx"
]
NEWER = [
    name
    for name, row in neuron_releases().items()
    if "optimum" in row.loaders and generation(row) == "nxd"
]
# The compiler names its build behind its version.
SUFFIX = "+4a9b2326"
NXDI = [name for name, row in neuron_releases().items() if "nxdi" in row.loaders]


def exported(
    asked: NxdRequest, loader: str, tmp_path: Path, **options: Any
) -> tuple[Path, Any]:
    """The folder that a driver fills, and how it ended."""
    model = write_model(tmp_path / "model", asked.model_type)
    call = lowered(asked, loader).to_json()
    versions = {
        "STANDIN_OPTIMUM_NEURON": asked.release.optimum_neuron,
        "compiler": f"{asked.release.neuronx_cc}{SUFFIX}",
    }
    done = run_export(
        call, model, tmp_path / "work", **{"cores": 2, **versions, **options}
    )
    return tmp_path / "work" / "result", done


def reloaded(folder: Path, asked: NxdRequest, program: str, work: Path) -> Any:
    """What the stand-in says when it loads a folder without compiling."""
    return start(
        ["-c", program, folder],
        work,
        cores=2,
        compiler=f"{asked.release.neuronx_cc}{SUFFIX}",
        STANDIN_OPTIMUM_NEURON=asked.release.optimum_neuron,
    )


LOAD_OPTIMUM = """
import sys
from optimum.neuron import NeuronModelForCausalLM
NeuronModelForCausalLM.from_pretrained(sys.argv[1])
"""
LOAD_NXDI = """
import sys
from neuronx_distributed_inference.models.llama.modeling_llama import (
    NeuronLlamaForCausalLM as Model,
)
Model(sys.argv[1]).load(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("release", "model_type"),
    [
        *((name, "llama") for name in OLDER),
        (OLDER[-1], "gpt2"),
        (OLDER[0], "opt"),
    ],
)
def test_older_exports_load_as_they_are(
    release: str, model_type: str, tmp_path: Path
) -> None:
    """What is predicted is what is made, and LMI's loader finds all of it again."""
    asked = request(release, model_type)
    folder, done = exported(asked, "optimum", tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "neuron.json").read_text())
    call = lower_optimum(asked)
    paths = (str(tmp_path),)
    assert build_problems(folder, record, plan_of(asked, call), paths=paths) == ()
    config = json.loads((folder / "config.json").read_text())
    block = neuron_block(asked)
    said = f"{block['compiler_version']}{SUFFIX}"
    assert config["neuron"] == {**block, "compiler_version": said}
    inner = inner_call(asked).arguments
    if isinstance(inner["n_positions"], list):
        assert record["effective"]["context_buckets"] == inner["n_positions"]
    where = local_folder(folder)
    properties = optimum_properties(asked)
    assert optimum_start(where, asked.release, properties).outcome == "loads"
    again = reloaded(folder, asked, LOAD_OPTIMUM, tmp_path)
    assert again.returncode == 0, again.stderr


def test_older_exports_need_a_device(tmp_path: Path) -> None:
    """Without one the driver ends before the library is asked."""
    _, done = exported(request(OLDER[0]), "optimum", tmp_path, cores=0)

    assert [fault["code"] for fault in faults(done)] == ["neuronx.device-needed"]


def test_too_many_cores_are_told_in_the_words_of_the_library(tmp_path: Path) -> None:
    """What the library raises reaches the user."""
    asked = request(OLDER[0], tensor_parallel_size=8)
    _, done = exported(asked, "optimum", tmp_path)

    assert "exceeds" in faults(done)[0]["message"]


def test_another_compiler_is_seen_before_it_loads(tmp_path: Path) -> None:
    """A newer compiler than the image's, as the library itself refuses it."""
    asked = request(OLDER[-1])
    folder, done = exported(asked, "optimum", tmp_path, compiler="2.99.1.0")
    assert done.returncode == 0, done.stderr
    verdict = optimum_start(
        local_folder(folder), asked.release, optimum_properties(asked)
    )
    assert (verdict.outcome, "newer" in verdict.reason) == ("fails", True)
    assert "newer" in reloaded(folder, asked, LOAD_OPTIMUM, tmp_path).stderr


@pytest.mark.parametrize(
    ("release", "text_config"), [*((name, "") for name in NEWER), (NEWER[0], "1")]
)
def test_newer_exports_load_as_they_are(
    release: str, text_config: str, tmp_path: Path
) -> None:
    """Weights lie in the artifact, also where the library would leave them out."""
    asked = request(release)
    folder, done = exported(
        asked, "optimum", tmp_path, cores=0, STANDIN_TEXT_CONFIG=text_config
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "neuron.json").read_text())
    call = lower_optimum(asked)
    paths = (str(tmp_path),)
    assert build_problems(folder, record, plan_of(asked, call), paths=paths) == ()
    where, environment = local_folder(folder), optimum_environment(asked)
    verdict = optimum_serve_start(where, asked.release, environment, "inf2")
    assert verdict.outcome == "loads", verdict
    again = reloaded(folder, asked, LOAD_OPTIMUM, tmp_path)
    assert again.returncode == 0, again.stderr


def test_newer_exports_are_of_one_version(tmp_path: Path) -> None:
    """Another release, another machine or another batch is told, and does not load."""
    release = NEWER[0]
    asked = request(release)
    folder, done = exported(asked, "optimum", tmp_path, cores=0)
    assert done.returncode == 0, done.stderr
    where, environment = local_folder(folder), optimum_environment(asked)
    for name in NEWER:
        row = neuron_releases()[name]
        verdict = optimum_serve_start(where, row, environment, "trn1")
        assert (verdict.outcome == "loads") == (name == release)
        other = reloaded(folder, request(name), LOAD_OPTIMUM, tmp_path)
        assert (other.returncode == 0) == (name == release)
    verdict = optimum_serve_start(where, asked.release, environment, "trn2")
    assert "`target` trn1" in verdict.reason
    larger = {**environment, "SM_ON_BATCH_SIZE": "8"}
    verdict = optimum_serve_start(where, asked.release, larger, "inf2")
    assert "SM_ON_BATCH_SIZE=4" in verdict.fix
    (folder / "checkpoint/weights/tp1_sharded_checkpoint.safetensors").unlink()
    verdict = optimum_serve_start(
        local_folder(folder), asked.release, environment, "inf2"
    )
    assert "tp1_sharded" in verdict.reason


@pytest.mark.parametrize(
    ("release", "method"), [*((name, "none") for name in NXDI), (NXDI[0], "int8")]
)
def test_nxdi_loads_as_it_is(release: str, method: str, tmp_path: Path) -> None:
    """Graphs and weights by core, int8 where asked, and nothing of the build beside."""
    from safetensors.torch import load_file

    asked = request(release, method=method)
    folder, done = exported(asked, "nxdi", tmp_path, cores=0)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "neuron.json").read_text())
    call = lower_nxdi(asked)
    paths = (str(tmp_path),)
    assert build_problems(folder, record, plan_of(asked, call), paths=paths) == ()
    counted = sum(len(buckets) for buckets in record["effective"].values())
    assert counted == call.num_graphs
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.pt",
        "neuron.json",
        "neuron_config.json",
        "weights",
    ]
    part = load_file(folder / "weights/tp0_sharded_checkpoint.safetensors")
    kind = str(part["model.layers.0.mlp.up_proj.weight"].dtype)
    assert kind == ("torch.int8" if method == "int8" else "torch.float32")
    again = start(["-c", LOAD_NXDI, folder], tmp_path, cores=2)
    assert again.returncode == 0, again.stderr
    config = (tmp_path / "model" / "config.json").read_text()
    (folder / "config.json").write_text(config)
    verdict = nxdi_start(local_folder(folder), asked.release, nxdi_properties(asked))
    assert verdict.outcome == "loads", verdict


def test_a_name_that_nxdi_drops_ends_the_build(tmp_path: Path) -> None:
    """The library only warns of it and compiles something else."""
    call = lower_nxdi(request(NXDI[0])).to_json()
    arguments: Any = call["arguments"]
    arguments["neuron_config"]["fuse_qkv"] = True
    model = write_model(tmp_path / "model")
    done = run_export(call, model, tmp_path / "work", cores=0)

    assert [fault["code"] for fault in faults(done)] == ["neuronx.swallowed-argument"]
    assert "fuse_qkv" in faults(done)[0]["message"]


def test_a_name_that_optimum_drops_ends_the_build(tmp_path: Path) -> None:
    """`from_pretrained` passes it on and nobody reads it."""
    asked = request(OLDER[0])
    call = lower_optimum(asked)
    call = replace(call, arguments={**call.arguments, "sequence_len": 7})
    model = write_model(tmp_path / "model")
    done = run_export(call.to_json(), model, tmp_path / "work", cores=2)

    assert [fault["code"] for fault in faults(done)] == ["neuronx.swallowed-argument"]


def test_experts_take_their_own_arguments(tmp_path: Path) -> None:
    """Their class names two arguments and hands the others on."""
    asked = request(NXDI[0], "mixtral", options={"capacity_factor": 2.0})
    folder, done = exported(asked, "nxdi", tmp_path, cores=0)
    assert done.returncode == 0, done.stderr
    stored = json.loads((folder / "neuron_config.json").read_text())["neuron_config"]

    assert (stored["capacity_factor"], stored["batch_size"]) == (2.0, 4)
