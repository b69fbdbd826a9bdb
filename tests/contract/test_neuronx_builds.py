"""
Recipes for NeuronX through every stage, packed, verified, published or refused.

The graphs are made by packages that stand for Neuron's, in a container that stands for
the release's image; everything else is what a user's build runs.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from encoders import make_encoder
from lmi_build import api, artifacts
from lmi_build.catalog.neuron_releases import neuron_releases, newest_neuron
from lmi_build.errors import (
    GateFailed,
    LmiBuildError,
    PublishFailed,
    RecipeInvalid,
    ToolMissing,
    VerifyFailed,
)
from lmi_build.spi import Job
from lmi_build.values.recipe import PublishSpec
from lmi_build.values.settings import Settings, settings_from_environ
from lmi_build.verify import neuronx
from lmi_build.verify.integrity import check_tree
from make_tiny_model import make_tiny_model
from neuron_machine import install

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {{source: {model}}}
quantize: {quantize}
bounds: {{max_input_len: 192, max_output_len: 64, max_batch_size: 4}}
compile:
  backend: neuronx
  target: ml.inf2.8xlarge
  release: {release}
  loader: {loader}
  tensor_parallel_size: 2
verify: {verify}
"""
SMALL = "{num_samples: 2, max_seq_len: 32}"
_KEPT = (
    "PYTHONPATH",
    "FAULT",
    "STANDIN_TNX",
    "STANDIN_CC",
    "STANDIN_WITHOUT_TRACE",
    "STANDIN_NEURON_CORES",
    "STANDIN_OPTIMUM_NEURON",
    "DOCKER_LOG",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 llama."""
    return make_tiny_model(
        tmp_path_factory.mktemp("model") / "tiny",
        hidden_size=128,
        intermediate_size=256,
    )


def machine(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    *,
    traces: bool = False,
) -> Path:
    """A machine with one Inferentia2 and docker, whose image is a release's."""
    row = neuron_releases()[release]
    versions = {
        "neuronx-distributed": row.neuronx_distributed,
        "neuronx-distributed-inference": row.nxdi,
        "optimum-neuron": row.optimum_neuron,
    }
    site = install(root, monkeypatch, release=release, versions=versions)
    if traces:
        # Tracing needs a model that computes.
        (site / "transformers.py").unlink()
        monkeypatch.delenv("STANDIN_WITHOUT_TRACE")
    monkeypatch.setenv("STANDIN_OPTIMUM_NEURON", row.optimum_neuron)
    monkeypatch.setenv("STANDIN_NEURON_CORES", "2")
    # The image's own Python: with torch, for those of the packages that take it.
    python = root / "bin" / "python3"
    python.unlink()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    # A worker gets few variables; the daemon of a real machine needs none of them.
    docker = root / "bin" / "docker"
    docker.rename(root / "bin" / "docker-itself")
    kept = [name for name in _KEPT if name in os.environ]
    lines = [f"export {name}={os.environ[name]!r}" for name in kept]
    real = f'exec {sys.executable} "$(dirname "$0")/docker-itself" "$@"'
    docker.write_text("\n".join(["#!/bin/sh", *lines, real, ""]))
    docker.chmod(0o755)
    for name in kept:
        monkeypatch.delenv(name)
    return root


def settings_of(tmp_path: Path, **changes: Any) -> Settings:
    """Settings with a store of this test's own."""
    environment = {"PATH": os.environ["PATH"], "LMI_BUILD_RUNNER": "container"}
    found = settings_from_environ(environment, cache_dir=tmp_path / "store")
    for name, value in changes.items():
        object.__setattr__(found, name, value)
    return found


def built(
    tmp_path: Path, settings: Settings, model: Path, **values: str
) -> tuple[Path, dict[str, Any]]:
    """The artifact's folder and its verification report."""
    words = {
        "quantize": "{method: none}",
        "release": "djl-neuronx-0.30.0",
        "loader": "auto",
        "verify": SMALL,
        **values,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, **words))
    plan = api.make_plan(api.load_recipe(path), settings)
    result = api.build(plan, settings)
    tree, _ = api.write_artifact(result, "tiny", tmp_path / "out", settings)
    return tree, json.loads(tree.with_name("tiny.verify.json").read_bytes())


def names_of(tree: Path) -> set[str]:
    """Every path of an artifact."""
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*")}


def properties_of(tree: Path) -> dict[str, str]:
    """Entries of `serving.properties`."""
    lines = (tree / "serving.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def test_graphs_are_packed_as_their_release_wants_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """Weights of every core beside the graphs; the image loads them as they are."""
    root = machine(tmp_path / "machine", monkeypatch, "djl-neuronx-0.30.0")

    tree, report = built(tmp_path, settings_of(tmp_path), model)

    names = names_of(tree)
    graphs = {name for name in names if name.endswith(".neff")}
    assert {
        "config.json",
        "serving.properties",
        "tokenizer.json",
        "compiled/VERSION",
        "compiled/config.json",
        "compiled/DecoderLMHead.safetensors",
    } <= names
    assert len(graphs) == 3
    assert not [
        name for name in names if name.endswith(".safetensors") and "/" not in name
    ]
    assert check_tree(tree) == ()
    verdicts = {row["lmi"]: row["outcome"] for row in report["startup"]}
    assert verdicts["0.30.0"] == "loads"
    assert verdicts["0.29.0"] != "loads"
    assert '"devices": ["/dev/neuron0"]' in (root / "docker.log").read_text()


def test_every_bound_arrives_in_four_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """The manifest, the properties, the configuration and what the library said."""
    machine(tmp_path / "machine", monkeypatch, "djl-neuronx-0.30.0")

    tree, _ = built(tmp_path, settings_of(tmp_path), model)

    manifest = json.loads((tree / "manifest.json").read_bytes())
    bounds, entries = manifest["bounds"], properties_of(tree)
    block = json.loads((tree / "config.json").read_bytes())["neuron"]
    record = json.loads((tree / "neuron.json").read_bytes())
    assert bounds["max_seq_len"] == 256
    assert entries["option.n_positions"] == "256" == str(block["sequence_length"])
    assert entries["option.context_length_estimate"] == "128,192"
    assert record["effective"]["token_buckets"] == [256]
    assert record["effective"]["context_buckets"] == [128, 192]
    assert entries["option.max_rolling_batch_size"] == "4" == str(block["batch_size"])
    assert entries["option.tensor_parallel_degree"] == "2" == str(block["num_cores"])
    assert manifest["compatibility"]["versions"]["neuronx-cc"] == "2.15.141.0"
    assert (tree / "compiled/VERSION").read_text().startswith("2.15.141.0")


def test_older_images_get_the_weights_in_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """LMI 0.29 shards what lies in `checkpoint/` when it starts."""
    release = "djl-neuronx-0.29.0"
    machine(tmp_path / "machine", monkeypatch, release)

    tree, report = built(tmp_path, settings_of(tmp_path), model, release=release)

    names = names_of(tree)
    assert "checkpoint/config.json" in names
    assert "compiled/DecoderLMHead.safetensors" not in names
    verdicts = {row["lmi"]: row["outcome"] for row in report["startup"]}
    assert verdicts["0.29.0"] == "loads"


def test_eight_bits_are_the_librarys_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """Float weights go in, the option goes to the server, and gates judge."""
    machine(tmp_path / "machine", monkeypatch, "djl-neuronx-0.30.0")
    settings = settings_of(tmp_path)

    tree, report = built(tmp_path, settings, model, quantize="{method: int8}")

    assert properties_of(tree)["option.quantize"] == "static_int8"
    manifest = json.loads((tree / "manifest.json").read_bytes())
    assert manifest["scheme"]["weight_bits"] == 8
    assert "quantize" not in manifest["plan"]
    assert 0 < report["drift"]["mean_kl"] < 0.1
    strict = "{num_samples: 2, max_seq_len: 32, gates: {max_mean_kl: 0.0000001}}"
    with pytest.raises(GateFailed) as caught:
        built(tmp_path, settings, model, quantize="{method: int8}", verify=strict)
    assert "max_mean_kl" in caught.value.message


@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant", "fp8", "rtn"])
def test_weights_that_nothing_reads_are_refused_by_the_plan(
    method: str, tmp_path: Path, model: Path
) -> None:
    """Before a weight is read, with what to write instead."""
    with pytest.raises(RecipeInvalid) as caught:
        built(tmp_path, settings_of(tmp_path), model, quantize=f"{{method: {method}}}")

    problem = caught.value.problems[0]
    assert (problem.path, problem.unsupported) == ("quantize.method", True)
    assert "method: int8" in problem.hint
    assert caught.value.exit_code == 3


def test_no_device_is_said_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """The way out is in the message, and nothing was spent."""
    install(tmp_path / "machine", monkeypatch, devices=0)
    for name in _KEPT:
        monkeypatch.delenv(name, raising=False)
    settings = settings_of(tmp_path)

    with pytest.raises(ToolMissing) as caught:
        built(tmp_path, settings, model)

    assert caught.value.code == "neuronx.no-device"
    assert "--rehearse" in caught.value.hints[0]
    assert not list((tmp_path / "store").glob("builds/tiny/*/*compile*"))


def test_a_rehearsal_is_packed_and_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """It names the call, has another key than the graphs, and stays here."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    settings = settings_of(tmp_path, rehearse=True)

    tree, report = built(tmp_path, settings, model)

    assert report["rehearsal"] is True
    found = json.loads((tree / "rehearsal.json").read_bytes())
    assert found["request"]["call"]["num_graphs"] == 3
    assert found["container"][:2] == ["docker", "run"]
    with pytest.raises(PublishFailed) as caught:
        artifacts.publish(tree, PublishSpec(to=str(tmp_path / "there")), settings)
    assert caught.value.code == "publish.rehearsal"
    assert not (tmp_path / "there").exists()


def test_an_artifact_is_published_and_asked_about_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """Every Neuron image is asked, no other."""
    machine(tmp_path / "machine", monkeypatch, "djl-neuronx-0.30.0")
    settings = settings_of(tmp_path)
    tree, _ = built(tmp_path, settings, model)

    artifacts.publish(tree, PublishSpec(to=str(tmp_path / "there")), settings)

    there = next(
        path.parent for path in (tmp_path / "there").rglob("serving.properties")
    )
    rows = artifacts.start_up(PublishSpec(to=str(there)), settings)
    assert {row.release.rpartition("-")[0] for row in rows} == {"djl-neuronx"}
    found = {row.lmi: row.outcome for row in rows}
    assert found["0.30.0"] == "loads"
    one = artifacts.start_up(PublishSpec(to=str(there)), settings, release="0.30")
    assert [row.outcome for row in one] == ["loads"]


@pytest.mark.parametrize("fault", ["neff", "version", "root", "properties"])
def test_what_was_changed_afterwards_is_found(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """Whoever packed it again: the files are held against the plan, not only hashes."""
    machine(tmp_path / "machine", monkeypatch, "djl-neuronx-0.30.0")
    settings = settings_of(tmp_path)
    tree, _ = built(tmp_path, settings, model)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            to = copy / path.relative_to(tree)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    if fault == "neff":
        next((copy / "compiled").glob("*.neff")).unlink()
    elif fault == "version":
        (copy / "compiled/VERSION").write_text("2.16.372.0+4a9b2326")
    elif fault == "root":
        (copy / "model.safetensors").write_bytes(
            (copy / "compiled/DecoderLMHead.safetensors").read_bytes()
        )
    else:
        path = copy / "serving.properties"
        text = path.read_text().replace("n_positions=256", "n_positions=512")
        path.write_text(text)
    manifest_again(copy)
    plan = api.make_plan(api.load_recipe(tmp_path / "recipe.yaml"), settings)
    stage = next(stage for stage in plan.stages if stage.kind == "verify")
    for name in ("report", "state"):
        (tmp_path / name).mkdir()
    job = Job(
        stage="tiny/verify",
        params=stage.params,
        inputs={"package": copy, "model": model},
        out=tmp_path / "report",
        state=tmp_path / "state",
    )

    with pytest.raises(LmiBuildError) as caught:
        neuronx.run(job, lambda _: None)

    assert isinstance(caught.value, VerifyFailed)
    assert caught.value.hints
    assert not (tmp_path / "report" / "verify.json").exists()


@pytest.mark.parametrize(
    ("release", "loader"),
    [
        ("djl-neuronx-0.30.0", "optimum"),
        ("djl-neuronx-0.34.0", "nxdi"),
        ("HF", "auto"),
    ],
)
def test_exports_are_packed_for_their_container(
    release: str,
    loader: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
) -> None:
    """Each release's own folder, told by its file or by its variables."""
    if release == "HF":
        release = newest_neuron("huggingface-vllm-neuronx").name
    machine(tmp_path / "machine", monkeypatch, release)
    settings = settings_of(tmp_path, places={"image": "registry/own@sha256:0"})

    tree, report = built(tmp_path, settings, model, release=release, loader=loader)

    assert [row["outcome"] for row in report["startup"]] == ["loads"]
    manifest = json.loads((tree / "manifest.json").read_bytes())
    variables = manifest["deploy"]["environment"]
    if release.startswith("huggingface"):
        assert variables["SM_ON_SEQUENCE_LENGTH"] == "256"
        assert not (tree / "serving.properties").exists()
    else:
        assert properties_of(tree)["option.n_positions"] == "256"
        assert variables == {}
    assert manifest["compatibility"]["num_cores"] == 2
    if neuron_releases()[release].published:
        bodies = artifacts.deployment_requests(
            manifest, "s3://bucket/prefix/tiny", region="us-east-1"
        )
        container = bodies["CreateModel"]["PrimaryContainer"]
        assert neuron_releases()[release].repository in container["Image"]
        assert container["Environment"] == variables


ENCODER = """\
schema: lmi-build/v1
name: tiny
model: {{source: {model}}}
bounds: {{max_input_len: 24, max_output_len: 0, max_batch_size: 2}}
compile:
  backend: neuronx
  target: ml.inf2.xlarge
  options: {{length_buckets: [8, 24]}}
"""


def test_an_encoder_is_traced_packed_and_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lengths, a handler of ours, and the float model's answers beside them."""
    machine(tmp_path / "machine", monkeypatch, "djl-neuronx-0.30.0", traces=True)
    settings = settings_of(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(ENCODER.format(model=tmp_path / "bert"))
    make_encoder(tmp_path / "bert", sentence={"pooling": "mean", "normalize": True})

    result = api.build(api.make_plan(api.load_recipe(path), settings), settings)
    tree, _ = api.write_artifact(result, "tiny", tmp_path / "out", settings)

    assert {"model.py", "engine/model.8.pt", "engine/model.24.pt"} <= names_of(tree)
    assert properties_of(tree)["option.entryPoint"] == "model.py"
    assert check_tree(tree) == ()
    manifest = json.loads((tree / "manifest.json").read_bytes())
    assert manifest["bounds"]["max_output_len"] == 0
    assert manifest["compatibility"]["loader"] == "trace"
    report = json.loads(tree.with_name("tiny.verify.json").read_bytes())
    assert report["reference"]


def manifest_again(folder: Path) -> None:
    """Write a manifest that agrees with the files, as a careless hand would."""
    from dataclasses import replace

    from lmi_build.digest import digest_file
    from lmi_build.values.manifest import FileEntry, Manifest

    path = folder / "manifest.json"
    manifest = Manifest.from_bytes(path.read_bytes())
    path.unlink()
    files = tuple(
        FileEntry(
            path=item.relative_to(folder).as_posix(),
            size=item.stat().st_size,
            digest=digest_file(item),
        )
        for item in sorted(folder.rglob("*"))
        if item.is_file()
    )
    files = tuple(sorted(files))
    path.write_bytes(replace(manifest, files=files).to_bytes())
