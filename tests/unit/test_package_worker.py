"""The package stage: a whole tree, twice the same, sources untouched."""

from __future__ import annotations

import ast
import gzip
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build import events
from lmi_build.checkpoint.header import TensorEntry
from lmi_build.checkpoint.layers import (
    layers_from_bytes,
    layers_summary,
    layers_to_bytes,
)
from lmi_build.checkpoint.ledger import copied, write_ledger
from lmi_build.digest import digest_bytes, digest_file
from lmi_build.errors import LmiBuildError
from lmi_build.package import handler_files, worker
from lmi_build.package.place import place
from lmi_build.spi import Job
from lmi_build.values.manifest import Manifest
from lmi_build.values.recipe import PackageSpec
from lmi_build.verify.integrity import check_tree
from packed import HANDLERS, sample_params, sample_recipe, sample_serving

if TYPE_CHECKING:
    from pathlib import Path

BIG_BYTES = 2 << 20


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Inputs of a package stage around the echo handler."""
    monkeypatch.setattr(handler_files, "_ROOT", HANDLERS)
    model, checkpoint, engine = (
        tmp_path / n for n in ("model", "checkpoint", "engine")
    )
    for folder in (model, checkpoint, engine / "deep"):
        folder.mkdir(parents=True)
    (model / "tokenizer.json").write_text("{}")
    (model / "LICENSE.txt").write_text("do as you like")
    (model / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 2}')
    names = ("a.weight", "b.weight", "c.weight")
    entries = (
        TensorEntry(name=n, dtype="float32", shape=(1,), begin=0, end=4) for n in names
    )
    write_ledger(checkpoint, [copied(entry) for entry in entries])
    (engine / "graph.bin").write_bytes(bytes(BIG_BYTES))
    (engine / "deep" / "config.json").write_text("{}")
    return _job(tmp_path, "out", sample_params(handler_digest=_handler_digest()))


def _handler_digest() -> Any:
    return digest_file(HANDLERS / "echo_handler.py")


def _job(root: Path, out: str, params: dict[str, Any]) -> Job:
    (root / out).mkdir()
    inputs = {name: root / name for name in ("model", "checkpoint", "engine")}
    return Job(
        stage="sample/package",
        params=params,
        inputs=inputs,
        out=root / out,
        state=root / "state",
    )


def _again(job: Job, out: str, **changes: Any) -> Job:
    return _job(job.out.parent, out, {**job.params, **changes})


def _manifest(job: Job) -> Manifest:
    return Manifest.from_bytes((job.out / "manifest.json").read_bytes())


def _layers_bytes(job: Job) -> bytes:
    return (job.out / "layers.json").read_bytes()


def test_tree_is_whole_and_passes_its_own_check(job: Job) -> None:
    """Everything a server needs is there, listed, and consistent."""
    worker.run(job, events.ignore)
    manifest = _manifest(job)

    assert check_tree(job.out) == ()
    assert {entry.path for entry in manifest.files} == {
        "LICENSE.txt",
        "README.md",
        "engine/deep/config.json",
        "engine/graph.bin",
        "generation_config.json",
        "layers.json",
        "lmi_build.json",
        "model.py",
        "provenance.json",
        "requirements.txt",
        "serving.properties",
        "tokenizer.json",
    }
    assert manifest.ledger == {
        "digest": digest_file(job.inputs["checkpoint"] / "ledger.json"),
        "num_rows": 3,
        "layers": layers_summary(layers_from_bytes(_layers_bytes(job))),
    }
    assert _layers_bytes(job) == layers_to_bytes(layers_from_bytes(_layers_bytes(job)))
    assert manifest.deploy["environment"] == {"OMP_NUM_THREADS": "2"}


def test_same_inputs_give_the_same_bytes(job: Job) -> None:
    """Packaging twice gives one identity."""
    again = _again(job, "again")
    worker.run(job, events.ignore)
    worker.run(again, events.ignore)

    assert _manifest(job).digest == _manifest(again).digest


def test_large_files_are_linked_and_small_ones_copied(job: Job) -> None:
    """Weights are not written twice; a small file can be edited without harm."""
    worker.run(job, events.ignore)
    engine = job.inputs["engine"]

    assert (job.out / "engine/graph.bin").samefile(engine / "graph.bin")
    assert not (job.out / "engine/deep/config.json").samefile(
        engine / "deep/config.json"
    )


def test_place_copies_where_links_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another file system the bytes are copied, all of them."""
    source = tmp_path / "source"
    source.write_bytes(b"0123456789" * (BIG_BYTES // 10))

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    place(source, tmp_path / "deep" / "copy")

    assert (tmp_path / "deep" / "copy").read_bytes() == source.read_bytes()
    assert not (tmp_path / "deep" / "copy").samefile(source)


def test_archive_is_deterministic_and_listed(job: Job) -> None:
    """Two archives of the same tree are equal, and name no time or owner."""
    again = _again(job, "again", format="tar.gz")
    once = _again(job, "once", format="tar.gz")
    worker.run(once, events.ignore)
    worker.run(again, events.ignore)
    data = (once.out / "model.tar.gz").read_bytes()

    assert data == (again.out / "model.tar.gz").read_bytes()
    assert check_tree(once.out) == ()
    with tarfile.open(once.out / "model.tar.gz") as tar:
        members = tar.getmembers()
        engine = tar.extractfile("engine/graph.bin")
        assert engine is not None
        assert digest_bytes(engine.read()) == digest_file(
            job.inputs["engine"] / "graph.bin"
        )
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {
        (0, 0, 0, "", "")
    }
    assert data[4:8] == bytes(4)
    assert gzip.decompress(data)


def test_settings_are_written_for_the_handler(job: Job) -> None:
    """The handler finds its bounds in lmi_build.json."""
    worker.run(job, events.ignore)
    settings = json.loads((job.out / "lmi_build.json").read_bytes())

    assert settings == job.params["serving"]["settings"]  # type: ignore[index, call-overload]


def test_model_card_of_the_source_wins(job: Job) -> None:
    """A README of the model is kept as it is."""
    (job.inputs["model"] / "README.md").write_text("# the model's own\n")
    worker.run(job, events.ignore)

    assert (job.out / "README.md").read_text() == "# the model's own\n"


@pytest.mark.parametrize(
    ("breaks", "code"),
    [
        ("tokenizer", "package.no-tokenizer"),
        ("engine", "package.no-engine"),
        ("ledger", "package.ledger-unreadable"),
        ("handler", "package.handler-changed"),
    ],
)
def test_broken_inputs_are_named(job: Job, breaks: str, code: str) -> None:
    """What is missing is said with a code and a way out, and nothing is committed."""
    if breaks == "tokenizer":
        (job.inputs["model"] / "tokenizer.json").unlink()
    elif breaks == "engine":
        (job.inputs["engine"] / "graph.bin").unlink()
        (job.inputs["engine"] / "deep" / "config.json").unlink()
    elif breaks == "ledger":
        (job.inputs["checkpoint"] / "ledger.json").write_text("3")
    else:
        params = sample_params(handler_digest=digest_bytes(b"another"))
        job = _again(job, "other", **params)

    with pytest.raises(LmiBuildError) as caught:
        worker.run(job, events.ignore)
    assert caught.value.code == code
    assert caught.value.hints
    assert not (job.out / "manifest.json").exists()


def test_unknown_handler_is_a_programmer_error() -> None:
    """Only installed handlers can be shipped."""
    with pytest.raises(ValueError, match="no handler"):
        handler_files.handler_path("../../worker")


@pytest.mark.parametrize("name", ["onnxruntime_genai", "aotinductor"])
def test_a_shipped_handler_is_one_file(name: str) -> None:
    """What handlers share lies inside each; no import of lmi-build is left."""
    source = handler_files.handler_source(name).decode()

    modules = [
        n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)
    ]
    assert not [module for module in modules if (module or "").startswith("lmi_build")]
    assert "class Sampler:" in source
    compile(source, "model.py", "exec")


def test_parameters_follow_the_recipe() -> None:
    """Format and requirements come from the recipe and the backend."""
    recipe = sample_recipe(package=PackageSpec(format="tar.gz"))
    serving = sample_serving(requirements=("b==2", "a==1"))
    params = sample_params(recipe=recipe, serving=serving)

    assert params["deploy"]["model_data_compression"] == "Gzip"
    assert params["compatibility"]["requirements"] == ["b==2", "a==1"]
