"""A recipe to a folder that LMI loads: lowered, compiled, laid out, proved, loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from bench.folder_facts import folder_facts
from lmi_build.backends.java_properties import java_properties
from lmi_build.backends.neuronx import compile_worker
from lmi_build.backends.neuronx.calls import plain
from lmi_build.backends.neuronx.compile_plan import compile_plan
from lmi_build.backends.neuronx.front_ends import neuron_front_ends
from lmi_build.backends.neuronx.layout import artifact_layout, neuron_block
from lmi_build.backends.neuronx.loader_call import loader_call
from lmi_build.backends.neuronx.serving_keys import serving_properties
from lmi_build.backends.neuronx.tnx import effective, lower_tnx
from lmi_build.backends.neuronx.tnx_problems import tnx_problems
from lmi_build.backends.neuronx.tnx_request import TnxRequest
from lmi_build.backends.neuronx.workplace import ship
from lmi_build.catalog.instances import instances
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.events import ignore
from lmi_build.package.layouts import djl_properties
from lmi_build.package.properties import render_properties
from lmi_build.package.worker import make_manifest
from lmi_build.spi import Job, Serving
from lmi_build.verify import neuronx
from neuron_machine import files_of, install, neuron_job
from packed import BOUNDS, entry, sample_params, sample_recipe
from tiny_architectures import make

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.backends.neuronx.calls import NeuronCall

RELEASES = ("djl-neuronx-0.29.0", "djl-neuronx-0.30.0", "djl-neuronx-0.34.0")
# What the release's loader does with the folder, in the toolchain's own Python.
LOAD = """\
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
from neuron_drivers.common import Session
made = json.loads(sys.argv[2])
asked = {"call": {}, "model": "", "device": True, "versions": {}, "block": None,
         "workdir": "/"}
session = Session(asked, "none")
module, _, name = made["model_class"].rpartition(".")
loader = getattr(importlib.import_module(module), name)
model = loader.from_pretrained(made["folder"], **session.make(made["arguments"]))
model.load(made["graphs"])
model.to_neuron()
print(len(model.neffs))
"""


def request_for(model: Path, release: str, **options: Any) -> TnxRequest:
    """The tiny model on a machine with two cores."""
    facts = folder_facts(model)
    request = TnxRequest(
        bounds=BOUNDS,
        geometry=facts.geometry,
        config=json.loads((model / "config.json").read_bytes()),
        release=neuron_releases()[release],
        instance=instances()["ml.inf2.8xlarge"],
        tensor_parallel_size=2,
        dtype="float32",
        int8=True,
        options=options,
    )
    assert list(tnx_problems(request)) == []
    return request


def packaged(root: Path, built: Path, model: Path, request: TnxRequest) -> Path:
    """The stage's result as the package stage lays it out."""
    call, release = lower_tnx(request), request.release
    layout = artifact_layout(release, num_layers=request.geometry.num_layers)
    shutil.copytree(built, root / layout.engine_dir)
    for name in ("tokenizer.json", "tokenizer_config.json", *layout.model_files):
        if (model / name).is_file():
            shutil.copyfile(model / name, root / layout.tokenizer_dir / name)
    serving = Serving(
        handler="",
        requirements=(),
        properties=serving_properties(release, call, request.config),
        engine_dir=layout.engine_dir,
        settings={},
    )
    recipe = sample_recipe()
    text = render_properties(djl_properties(recipe, serving))
    (root / "serving.properties").write_bytes(text)
    assert set(layout.files) <= set(files_of(root))
    entries = [entry(root, name) for name in files_of(root)]
    params = sample_params(recipe=recipe, serving=serving)
    manifest = make_manifest(params, entries, ledger=None)
    (root / "manifest.json").write_bytes(manifest.to_bytes())
    return root


def proved(tmp_path: Path, package: Path, model: Path, call: NeuronCall) -> Any:
    """The report of the verify stage."""
    out, state = tmp_path / "proof", tmp_path / "proof-state"
    out.mkdir()
    state.mkdir()
    release = json.loads((package / "neuron.json").read_bytes())["release"]
    params = {
        "release": release,
        "rehearsal": False,
        "call": plain(call.to_json()),
        "num_layers": folder_facts(model).geometry.num_layers,
        "int8": True,
        "gates": {
            "max_perplexity_ratio": 2.0,
            "max_mean_kl": 1.0,
            "min_top1_agreement": 0.0,
            "max_abs_logit_error": None,
        },
        "num_samples": 2,
        "max_seq_len": 16,
        "trust_remote_code": False,
    }
    job = Job(
        stage="verify",
        params=json.loads(json.dumps(params)),
        inputs={"package": package, "model": model},
        out=out,
        state=state,
        settings={"threads": 1},
    )
    neuronx.run(job, ignore)
    return json.loads((out / "verify.json").read_bytes())


def loaded(
    tmp_path: Path, package: Path, release: str, **changed: str
) -> subprocess.CompletedProcess[str]:
    """Load as the release does: by its properties, its configuration and its files."""
    row = neuron_releases()[release]
    entries = java_properties((package / "serving.properties").read_bytes())
    entries |= {f"option.{name}": value for name, value in changed.items()}
    config = json.loads((package / "config.json").read_bytes())
    front = neuron_front_ends()[row.version]
    made = loader_call(front, entries, config, paths=files_of(package))
    asked = {
        "model_class": made.model_class,
        "arguments": plain(made.arguments),
        "folder": str(package / made.folder),
        "graphs": str(package / made.graphs),
    }
    driver = tmp_path / f"driver{len(changed)}"
    ship(driver)
    return subprocess.run(
        [sys.executable, "-c", LOAD, str(driver), json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("release", RELEASES)
def test_what_a_recipe_makes_is_loaded(
    name: str, release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every graph is found by its hash; with one number changed none is."""
    options: dict[str, Any] = {"head_dim": 16} if name == "llama" else {}
    model = make(name, tmp_path / "model", **options)
    request = request_for(model, release, fuse_qkv=True)
    call = lower_tnx(request)
    plan = compile_plan(
        call,
        request.release,
        num_cores=2,
        block=neuron_block(request.release, call.arguments),
        expected=effective(request),
    )
    install(tmp_path / "machine", monkeypatch, release=release)
    job = neuron_job(tmp_path, plan, source=model)
    compile_worker.run(job, ignore)
    package = packaged(tmp_path / "package", job.out, model, request)

    report = proved(tmp_path, package, model, call)
    same = loaded(tmp_path, package, release)
    other = loaded(tmp_path, package, release, n_positions="128")

    outcomes = {row["lmi"]: row["outcome"] for row in report["startup"]}
    assert outcomes[request.release.version] == "loads"
    assert len(report["engine"]["graphs"]) == call.num_neffs
    assert same.stdout.strip() == str(call.num_neffs), same.stderr
    assert other.returncode != 0
    assert "NEFF" in other.stderr
