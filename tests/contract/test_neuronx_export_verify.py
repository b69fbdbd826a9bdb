"""The verify stage on exports that the real drivers made, with a real model."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from lmi_build.backends.neuronx.calls import plain
from lmi_build.backends.neuronx.nxdi_serving import nxdi_properties
from lmi_build.backends.neuronx.optimum_serving import (
    optimum_environment,
    optimum_properties,
)
from lmi_build.errors import GateFailed, VerifyFailed
from lmi_build.events import StageNote
from lmi_build.package.layouts import djl_properties
from lmi_build.package.properties import render_properties
from lmi_build.package.worker import make_manifest
from lmi_build.spi import Job, Serving
from lmi_build.verify.neuron_exports import run
from neuron_exports import lowered, request, run_export
from packed import BOUNDS, entry, sample_params, sample_recipe
from tiny_architectures import make

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.backends.neuronx.nxd_request import NxdRequest
    from lmi_build.events import Event

OLDER, NEWER = "djl-neuronx-0.30.0", "huggingface-vllm-neuronx-0.4.4"
NXDI = "djl-neuronx-0.34.0"
GATES = {
    "max_perplexity_ratio": 2.0,
    "max_mean_kl": 1.0,
    "min_top1_agreement": 0.0,
    "max_abs_logit_error": None,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer."""
    return make("llama", tmp_path_factory.mktemp("models") / "llama")


def packaged(
    work: Path, model: Path, asked: NxdRequest, loader: str, **properties: str
) -> Path:
    """What the driver leaves, with the model's own files and a manifest."""
    done = run_export(
        lowered(asked, loader).to_json(),
        model,
        work,
        cores=2,
        compiler=asked.release.neuronx_cc,
        STANDIN_OPTIMUM_NEURON=asked.release.optimum_neuron,
    )
    assert done.returncode == 0, done.stderr
    root = work / "result"
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        if not (root / name).exists():
            shutil.copyfile(model / name, root / name)
    newer = loader == "optimum" and asked.release.name == NEWER
    write = nxdi_properties if loader == "nxdi" else optimum_properties
    serving = Serving(
        handler="",
        requirements=(),
        properties={} if newer else {**write(asked), **properties},
        environment=optimum_environment(asked) if newer else {},
        engine_dir=".",
        settings={},
    )
    if not newer:
        told = djl_properties(sample_recipe(), serving)
        (root / "serving.properties").write_bytes(render_properties(told))
    files = [path for path in root.rglob("*") if path.is_file()]
    names = sorted(path.relative_to(root).as_posix() for path in files)
    entries = [entry(root, name) for name in names]
    manifest = make_manifest(sample_params(serving=serving), entries, ledger=None)
    (root / "manifest.json").write_bytes(manifest.to_bytes())
    return root


def verify(
    work: Path, package: Path, model: Path, asked: NxdRequest, loader: str, **more: Any
) -> tuple[dict[str, Any], list[str]]:
    """Run the stage; returns the report and the codes of what was said."""
    params = {
        "release": asked.release.name,
        "family": "inf2",
        "rehearsal": False,
        "call": plain(lowered(asked, loader).to_json()),
        "gates": GATES,
        "num_samples": 2,
        "max_seq_len": 16,
        "trust_remote_code": False,
        **more,
    }
    for folder in (work / "out", work / "state"):
        folder.mkdir(exist_ok=True)
    said: list[Event] = []
    job = Job(
        stage="verify",
        params=json.loads(json.dumps(params)),
        inputs={"package": package, "model": model},
        out=work / "out",
        state=work / "state",
        settings={"threads": 1},
    )
    run(job, said.append)
    codes = [event.code for event in said if isinstance(event, StageNote)]
    return json.loads((work / "out" / "verify.json").read_bytes()), codes


def wanted(release: str, model: Path, **parts: Any) -> NxdRequest:
    """The same bounds as the manifest's."""
    layers = json.loads((model / "config.json").read_bytes())["num_hidden_layers"]
    values = {"bounds": BOUNDS, "num_layers": layers, "amp": "f32", **parts}
    return request(release, **values)


@pytest.mark.parametrize(
    ("loader", "release"), [("optimum", OLDER), ("optimum", NEWER), ("nxdi", NXDI)]
)
def test_whole_exports(tmp_path: Path, model: Path, loader: str, release: str) -> None:
    """Each generation is what its container loads; floats are not measured."""
    asked = wanted(release, model)
    package = packaged(tmp_path, model, asked, loader)
    report, codes = verify(tmp_path, package, model, asked, loader)

    assert report["startup"][0]["outcome"] == "loads"
    assert "drift" not in report
    assert codes == []


def test_what_int8_costs(tmp_path: Path, model: Path) -> None:
    """The weights that NxD Inference rounds are held against the gates."""
    asked = wanted(NXDI, model, method="int8")
    package = packaged(tmp_path, model, asked, "nxdi")
    report, codes = verify(tmp_path, package, model, asked, "nxdi")
    assert 0 < report["drift"]["mean_kl"] < 0.1
    assert [row["met"] for row in report["gates"]] == [True] * len(report["gates"])
    assert codes == ["verify.measured"]

    strict = {**GATES, "max_mean_kl": 1e-12}
    with pytest.raises(GateFailed) as caught:
        verify(tmp_path, package, model, asked, "nxdi", gates=strict)
    assert caught.value.code == "verify.gate-missed"


def test_another_batch_than_was_compiled(tmp_path: Path, model: Path) -> None:
    """The properties that lie there decide, not those of the plan."""
    asked = wanted(OLDER, model)
    two = {"option.max_rolling_batch_size": "2"}
    package = packaged(tmp_path, model, asked, "optimum", **two)
    with pytest.raises(VerifyFailed, match="max_rolling_batch_size") as caught:
        verify(tmp_path, package, model, asked, "optimum")
    assert caught.value.code == "verify.compiles-at-start"


def test_a_core_without_weights(tmp_path: Path, model: Path) -> None:
    """A file that the call names and nobody wrote."""
    asked = wanted(NXDI, model)
    package = packaged(tmp_path, model, asked, "nxdi")
    wider = wanted(NXDI, model, tensor_parallel_size=3)
    with pytest.raises(VerifyFailed, match="tp2_sharded") as caught:
        verify(tmp_path, package, model, wider, "nxdi")
    assert caught.value.code == "verify.incomplete"
