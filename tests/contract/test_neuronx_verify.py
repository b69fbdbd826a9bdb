"""The verify stage on whole NeuronX artifacts, with a real model beside them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmi_build.backends.neuronx.calls import plain
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.checkpoint.formats.rounded import S8Reader
from lmi_build.errors import GateFailed, Unsupported, VerifyFailed
from lmi_build.events import StageNote
from lmi_build.numerics.s8 import rounded_s8
from lmi_build.package.layouts import djl_properties
from lmi_build.package.properties import parse_properties, render_properties
from lmi_build.package.worker import make_manifest
from lmi_build.spi import Job, Serving
from lmi_build.verify.neuronx import run
from neuron_folders import TNX_RELEASES, neuron_call, neuron_texts
from packed import BOUNDS, entry, sample_params, sample_recipe
from tiny_architectures import make

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.events import Event

NEW = neuron_releases()["djl-neuronx-0.30.0"]
GATES = {
    "max_perplexity_ratio": 2.0,
    "max_mean_kl": 1.0,
    "min_top1_agreement": 0.0,
    "max_abs_logit_error": None,
}
CALL: dict[str, Any] = {
    "batch": BOUNDS.max_batch_size,
    "n_positions": BOUNDS.max_seq_len,
    "context": (BOUNDS.max_seq_len,),
    "continuous": False,
    "amp": "f32",
    "int8": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer."""
    return make("llama", tmp_path_factory.mktemp("models") / "llama")


def packaged(
    root: Path,
    model: Path,
    release: NeuronRelease = NEW,
    *,
    changes: dict[str, bytes | None] | None = None,
    **call: Any,
) -> Path:
    """An artifact for one release, whole but for what is changed."""
    config = json.loads((model / "config.json").read_bytes())
    compiled = neuron_call(release, **{**CALL, **call})
    texts = neuron_texts(release, compiled, config=config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        texts[name] = (model / name).read_bytes()
    for name, data in (changes or {}).items():
        if data is None:
            del texts[name]
        else:
            texts[name] = data
    serving = Serving(
        handler="",
        requirements=(),
        properties=parse_properties(texts["serving.properties"]),
        engine_dir=".",
        settings={},
    )
    told = djl_properties(sample_recipe(), serving)
    texts["serving.properties"] = render_properties(told)
    shutil.rmtree(root, ignore_errors=True)
    for name, data in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    params = sample_params(serving=serving)
    entries = [entry(root, name) for name in texts]
    manifest = make_manifest(params, entries, ledger=None)
    (root / "manifest.json").write_bytes(manifest.to_bytes())
    return root


def verify(
    tmp_path: Path,
    package: Path,
    model: Path,
    release: NeuronRelease = NEW,
    **changes: Any,
) -> tuple[dict[str, Any], list[StageNote]]:
    """Run the stage; returns the report and what was said."""
    call = {**CALL, **changes.pop("call", {})}
    params = {
        "release": release.name,
        "rehearsal": False,
        "call": plain(neuron_call(release, **call).to_json()),
        "num_layers": json.loads((model / "config.json").read_bytes())[
            "num_hidden_layers"
        ],
        "int8": True,
        "gates": GATES,
        "num_samples": 2,
        "max_seq_len": 16,
        "trust_remote_code": False,
        **changes,
    }
    out, state = tmp_path / "out", tmp_path / "state"
    for folder in (out, state):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    said: list[Event] = []
    job = Job(
        stage="verify",
        params=json.loads(json.dumps(params)),
        inputs={"package": package, "model": model},
        out=out,
        state=state,
        settings={"threads": 1},
    )
    run(job, said.append)
    notes = [event for event in said if isinstance(event, StageNote)]
    return json.loads((out / "verify.json").read_bytes()), notes


@pytest.mark.parametrize(
    "release",
    [row for row in TNX_RELEASES if row.version in {"0.27.0", "0.29.0", "0.30.0"}],
    ids=lambda row: row.version,
)
def test_a_whole_artifact(tmp_path: Path, model: Path, release: NeuronRelease) -> None:
    """Its graphs, what images do with it, and what int8 costs."""
    package = packaged(tmp_path / "package", model, release)
    report, notes = verify(tmp_path, package, model, release)

    assert report["engine"]["compiler"] == release.neuronx_cc
    assert len(report["engine"]["graphs"]) == 2
    assert report["bounds"]["max_seq_len"] == BOUNDS.max_seq_len
    outcomes = {row["lmi"]: row["outcome"] for row in report["startup"]}
    assert outcomes[release.version] == "loads"
    assert 0 < report["drift"]["mean_kl"] < 0.1
    assert [row["met"] for row in report["gates"]] == [True] * len(report["gates"])
    assert [note.code for note in notes] == ["verify.measured"]


def test_floats_are_not_measured(tmp_path: Path, model: Path) -> None:
    """The library computes with the weights that it was given."""
    package = packaged(tmp_path / "package", model, int8=False)
    report, notes = verify(tmp_path, package, model, call={"int8": False}, int8=False)

    assert "drift" not in report
    assert notes == []


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"compiled/VERSION": b"2.16.372.0"}, "neuronx.version-differs", "2.16.372.0"),
        (
            {"compiled/00000000000000000001.neff": None},
            "neuronx.neff-missing",
            "1 NEFFs",
        ),
        (
            {"compiled/DecoderLMHead.safetensors": None},
            "neuronx.weights-missing",
            "the head",
        ),
        ({"model.safetensors": b"12345678"}, "neuronx.root-weights", "ignores"),
        ({"compiled/config.json": b"{}"}, "neuronx.weights-missing", "config.json"),
    ],
)
def test_what_is_not_whole_is_refused(
    tmp_path: Path, model: Path, changes: dict[str, bytes | None], code: str, words: str
) -> None:
    """Before any quality is measured; the manifest alone would not tell."""
    package = packaged(tmp_path / "package", model, changes=changes)
    with pytest.raises(VerifyFailed) as caught:
        verify(tmp_path, package, model)

    assert caught.value.code == code
    assert words in caught.value.message


def test_properties_of_another_call(tmp_path: Path, model: Path) -> None:
    """The loader would build graphs that are not there, argument by argument."""
    package = packaged(tmp_path / "package", model, options={"fuse_qkv": True})
    with pytest.raises(VerifyFailed, match="fuse_qkv") as caught:
        verify(tmp_path, package, model)

    assert caught.value.code == "neuronx.option-unserved"


def test_graphs_of_another_batch(tmp_path: Path, model: Path) -> None:
    """`config.json` says what was compiled, against the plan."""
    package = packaged(tmp_path / "package", model, tp=8)
    with pytest.raises(VerifyFailed, match="num_cores") as caught:
        verify(tmp_path, package, model)

    assert caught.value.code == "neuronx.block-differs"


def test_bounds_that_were_not_compiled(tmp_path: Path, model: Path) -> None:
    """The manifest promises more than the graphs take."""
    short: dict[str, Any] = {"n_positions": 64, "context": (32,)}
    package = packaged(tmp_path / "package", model, **short)
    with pytest.raises(VerifyFailed) as caught:
        verify(tmp_path, package, model, call=short)

    assert caught.value.code == "neuronx.bounds-differ"
    assert "max_input_len" in caught.value.message
    assert "max_seq_len" in caught.value.message


def test_a_missed_gate(tmp_path: Path, model: Path) -> None:
    """Int8 is never free."""
    package = packaged(tmp_path / "package", model)
    gates = {**GATES, "max_mean_kl": 1e-12}
    with pytest.raises(GateFailed) as caught:
        verify(tmp_path, package, model, gates=gates)

    assert caught.value.code == "verify.gate-missed"


def test_a_rehearsal_is_said_to_be_one(tmp_path: Path, model: Path) -> None:
    """Its files are not looked at, its quality is measured."""
    changes: dict[str, bytes | None] = {"compiled/VERSION": b"none"}
    package = packaged(tmp_path / "package", model, changes=changes)
    report, notes = verify(tmp_path, package, model, rehearsal=True)

    assert "engine" not in report
    assert [note.code for note in notes] == ["verify.rehearsal", "verify.measured"]


def test_experts_are_not_measured(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The library takes their scales along the other dimension."""
    mixtral = make("mixtral", tmp_path_factory.mktemp("models") / "mixtral")
    with pytest.raises(Unsupported, match="experts"):
        S8Reader(mixtral, amp="f32")


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_every_linear_of_a_block_is_rounded(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By output channel, however it is stored; nothing else is."""
    folder = make(name, tmp_path_factory.mktemp("models") / name)
    with S8Reader(folder, amp="f32") as reader:
        assert reader.rounded
        for tensor in reader.rounded:
            entry_of = reader.entry(tensor)
            rounded = reader.read(tensor)
            assert tuple(rounded.shape) == entry_of.shape
            assert len(entry_of.shape) == 2
            w_OI = rounded.T if name == "gpt2" else rounded
            # Rounded weights stay as they are; others of that size would move.
            assert torch.allclose(rounded_s8(w_OI), w_OI, rtol=1e-5, atol=1e-7)
        kept = {tensor for tensor in ("lm_head.weight",) if tensor in reader}
        assert not kept & set(reader.rounded)
        assert not [n for n in reader.rounded if "norm" in n or "ln_" in n]
