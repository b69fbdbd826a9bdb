"""The compile stage of Neuron models when machine, toolchain or build go wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ended_workers import end_worker
from lmi_build.backends.neuronx import compile_worker
from lmi_build.backends.neuronx.compile_cache import finished
from lmi_build.errors import (
    DoesNotFit,
    LmiBuildError,
    StageFailed,
    ToolMissing,
    Unsupported,
)
from lmi_build.events import ignore
from neuron_machine import (
    NEW,
    OLD,
    files_of,
    install,
    llama_call,
    llama_plan,
    neuron_job,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.spi import Job

IMAGE = "registry.example/djl-inference@sha256:" + "0" * 64


def fault_of(job: Job) -> LmiBuildError:
    """The error of a build, after which nothing lies in its output."""
    with pytest.raises(LmiBuildError) as caught:
        compile_worker.run(job, ignore)
    assert list(job.out.iterdir()) == []
    assert list(job.state.iterdir()) == []
    return caught.value


def graphs_of(root: Path) -> int:
    """Finished graphs that outlived the build."""
    return len(list(finished(root / "graphs")))


@pytest.mark.parametrize(
    ("machine", "settings", "kind", "code", "words"),
    [
        ({"devices": 0}, {}, ToolMissing, "neuronx.no-device", "/dev/neuron0"),
        (
            {"instance": "trn2.48xlarge"},
            {},
            Unsupported,
            "neuronx.wrong-device",
            "version 3",
        ),
        ({"busy": True}, {}, DoesNotFit, "neuronx.busy-cores", "/dev/neuron0 in use"),
        ({}, {"host_bytes": 1 << 50}, DoesNotFit, "neuronx.host-memory", "1024.0 TiB"),
        ({}, {"disk_bytes": 1 << 60}, DoesNotFit, "neuronx.disk", "disk"),
        (
            {"versions": {"transformers-neuronx": "0.13.380"}},
            {},
            ToolMissing,
            "neuronx.wrong-version",
            "0.12.313",
        ),
        (
            {"versions": {"neuronx-cc": "2.14.227.0+2d4f85be"}},
            {},
            ToolMissing,
            "neuronx.wrong-version",
            "2.15.141.0",
        ),
        (
            {"versions": {"torch-neuronx": ""}},
            {},
            ToolMissing,
            "neuronx.absent",
            "torch-neuronx",
        ),
    ],
)
def test_a_machine_that_will_not_do(
    machine: dict[str, Any],
    settings: dict[str, Any],
    kind: type[LmiBuildError],
    code: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is refused before anything is compiled."""
    install(tmp_path / "machine", monkeypatch, release=OLD, fault="raise", **machine)
    job = neuron_job(tmp_path, llama_plan(release=OLD), **settings)

    error = fault_of(job)

    assert isinstance(error, kind)
    assert error.code == code
    assert words in error.message
    assert graphs_of(tmp_path) == 0


def test_more_cores_than_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of both is in the message; without a need of them there is none."""
    install(tmp_path / "old", monkeypatch, release=OLD)
    plan = llama_plan(llama_call(cores=8), release=OLD, num_cores=8)

    error = fault_of(neuron_job(tmp_path / "one", plan))

    assert error.code == "neuronx.busy-cores"
    assert "8 NeuronCores" in error.message
    assert "2 are free" in error.message

    install(tmp_path / "new", monkeypatch, release=NEW)
    job = neuron_job(tmp_path / "two", llama_plan(llama_call(cores=8), num_cores=8))
    compile_worker.run(job, ignore)
    record = json.loads((job.out / "neuron.json").read_text())
    assert record["compiled_by"] == "cpu_compile"


@pytest.mark.parametrize("runner", ["local", "container"])
@pytest.mark.parametrize(
    ("fault", "code", "words", "kept"),
    [
        ("raise", "neuronx.raised", "10900000 instructions", 1),
        ("killed", "neuronx.command-failed", "signal 9|exit status 137", 1),
        ("missing-neff", "neuronx.differs", "2 NEFFs, 3 were to be made", 3),
        ("empty-neff", "neuronx.differs", "is empty", 3),
        ("root-weights", "neuronx.differs", "`model.safetensors` lies at its root", 3),
        ("path", "neuronx.differs", "compiled/config.json holds a path", 3),
    ],
)
def test_a_build_that_goes_wrong(
    fault: str,
    code: str,
    words: str,
    kept: int,
    runner: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One clear error, nothing of the result, and the finished graphs stay."""
    install(tmp_path / "machine", monkeypatch, fault=fault)

    error = fault_of(neuron_job(tmp_path, llama_plan(), runner=runner, image=IMAGE))

    assert isinstance(error, StageFailed)
    assert error.code == code
    assert any(word in error.message for word in words.split("|"))
    assert graphs_of(tmp_path) >= kept


def test_a_compiler_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What VERSION says decides, whatever the package's metadata say."""
    install(tmp_path / "machine", monkeypatch, compiler="2.14.227.0+2d4f85be")

    error = fault_of(neuron_job(tmp_path, llama_plan()))

    assert error.code == "neuronx.differs"
    assert "compiled/VERSION says compiler 2.14.227.0" in error.message


def test_every_difference_is_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, graphs and values that the library chose by itself."""
    install(tmp_path / "machine", monkeypatch)
    call = llama_call(num_neffs=5, files=("tokenizer.json",), flags=("-O2",))
    expected = {"group_query_attention": "replicated-heads", "token_buckets": [128]}

    error = fault_of(neuron_job(tmp_path, llama_plan(call, expected=expected)))

    assert "3 NEFFs, 5 were" in error.message
    assert "`tokenizer.json`" in error.message
    assert "`group_query_attention` became shard-over-heads" in error.message
    assert "`token_buckets` became [256]" in error.message
    assert "not ['-O2']" in error.message


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        (
            {"arguments": {"tensor_parallel": 8}},
            "neuronx.swallowed-argument",
            "`tensor_parallel`",
        ),
        ({"config": {"fuse_qvk": True}}, "neuronx.swallowed-argument", "`fuse_qvk`"),
        (
            {"arguments": {"context_length_estimate": [512]}},
            "neuronx.raised",
            "Max context_length_estimate 512",
        ),
        ({"arguments": {"batch_size": 8}}, "neuronx.raised", "8 is expected"),
        (
            {"config": {"on_device_embedding": False}},
            "neuronx.raised",
            "on_device_embedding must be True",
        ),
        ({"steps": (("delete", {}),)}, "neuronx.call-refused", "`delete`"),
        (
            {"steps": (("save", {"directory": {"path": "../../x"}}),)},
            "neuronx.call-refused",
            "leaves the result",
        ),
        (
            {"arguments": {"amp": {"factory": "os.system", "arguments": {}}}},
            "neuronx.call-refused",
            "os.system",
        ),
        ({"model_class": "transformers_neuronx.Qwen"}, "neuronx.call-refused", "Qwen"),
    ],
)
def test_a_call_that_cannot_be(
    changed: dict[str, Any],
    code: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the library would swallow is refused, and what it refuses is told."""
    install(tmp_path / "machine", monkeypatch)
    plan = llama_plan(llama_call(**changed), device_needed=False)

    error = fault_of(neuron_job(tmp_path, plan))

    assert error.code == code
    assert words in error.message


def test_a_loader_that_no_driver_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in a call imports nothing."""
    install(tmp_path / "machine", monkeypatch)
    plan = llama_plan()
    plan = replace(plan, call={**plan.call, "loader": "os"})

    assert "`os` is no loader" in fault_of(neuron_job(tmp_path, plan)).message


def test_a_killed_build_goes_on_from_its_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt gives the bytes of a build that was never killed."""
    install(tmp_path / "killed", monkeypatch, fault="killed")
    fault_of(neuron_job(tmp_path / "one", llama_plan()))
    shared = tmp_path / "one" / "graphs"
    before = {entry: (entry / "model.neff").stat().st_ino for entry in finished(shared)}

    install(tmp_path / "whole", monkeypatch)
    again = neuron_job(tmp_path / "two", llama_plan(), cache=str(shared))
    fresh = neuron_job(tmp_path / "three", llama_plan())
    for job in (again, fresh):
        compile_worker.run(job, ignore)

    assert before
    assert len(list(finished(shared))) == 3
    for entry, number in before.items():
        assert (entry / "model.neff").stat().st_ino == number
    for name in files_of(fresh.out):
        if name != "neuron.json":
            assert (again.out / name).read_bytes() == (fresh.out / name).read_bytes()


def test_what_an_attempt_left_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was killed itself left graphs in its work folder."""
    install(tmp_path / "machine", monkeypatch)
    first = neuron_job(tmp_path, llama_plan())
    left = first.state / "work" / "cache" / "neuronxcc-2.16.372.0+4a9b2326"
    whole, half = left / ("MODULE_" + "a" * 20 + "+0"), left / ("MODULE_b" + "+0")
    for entry in (whole, half):
        entry.mkdir(parents=True)
        (entry / "model.neff").write_bytes(b"NEFF")
    (whole / "model.done").touch()

    compile_worker.run(first, ignore)

    kept = {entry.name for entry in finished(tmp_path / "graphs")}
    assert whole.name in kept
    assert half.name not in kept
    assert len(kept) == 4


def test_a_worker_that_is_ended_ends_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container is no child of ours, and would compile on."""
    site = install(tmp_path / "machine", monkeypatch, fault="slow")
    job = neuron_job(tmp_path, llama_plan(), runner="container", image=IMAGE)

    status, pid = end_worker(
        job,
        compile_worker.__name__,
        said="neuronx-cc compiles",
        search_path=[str(site)],
    )

    assert status == 128 + 15
    log = (tmp_path / "machine" / "docker.log").read_text().splitlines()
    assert json.loads(log[-1]) == {"rm": f"lmi-build-{pid}"}
    assert list(job.out.iterdir()) == []
    assert list(job.state.iterdir()) == []


def test_a_machine_without_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so instead of a toolchain that does not answer."""
    install(tmp_path / "machine", monkeypatch)
    (tmp_path / "machine" / "bin" / "docker").unlink()
    job = neuron_job(tmp_path, llama_plan(), runner="container", image=IMAGE)

    error = fault_of(job)

    assert isinstance(error, ToolMissing)
    assert "docker" in error.message
