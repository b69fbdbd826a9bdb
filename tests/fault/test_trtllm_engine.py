"""The compile stage on a GPU machine whose programs fail one way at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ended_workers import end_worker
from lmi_build.backends.trtllm import engine_worker, rehearsal
from lmi_build.backends.trtllm.lowering import engine_needs, expected_files
from lmi_build.catalog.releases import release
from lmi_build.errors import (
    DoesNotFit,
    LmiBuildError,
    StageFailed,
    ToolMissing,
    Unsupported,
)
from lmi_build.events import Event, StageNote, ignore
from lmi_build.values.recipe import CompileSpec
from trtllm_recipes import lowered
from trtllm_toolchain import (
    NO_DRIVER,
    T4,
    checkpoint,
    engine_job,
    install,
    install_converter,
)

if TYPE_CHECKING:
    from lmi_build.backends.trtllm.lowering import EnginePlan
    from lmi_build.spi import Job

RELEASE = release("djl-tensorrtllm-0.30.0")
IMAGE = "registry.example/djl-inference@sha256:" + "0" * 64


def plan_of(method: str = "gptq", *, tensor: int = 2) -> EnginePlan:
    """An engine of two ranks, unless said otherwise."""
    spec = CompileSpec(
        backend="tensorrt-llm", target="ml.g5.12xlarge", tensor_parallel_size=tensor
    )
    return lowered(RELEASE, method, spec=spec)


def job_of(root: Path, plan: EnginePlan, **settings: Any) -> Job:
    """A job on a checkpoint that fits the plan."""
    inputs = {"checkpoint": checkpoint(root, plan)}
    return engine_job(root, plan, inputs, **settings)


def fault_of(job: Job) -> LmiBuildError:
    """The error of a build, after which nothing lies in its output."""
    with pytest.raises(LmiBuildError) as caught:
        engine_worker.run(job, ignore)
    assert list(job.out.iterdir()) == []
    assert list(job.state.iterdir()) == []
    return caught.value


@pytest.mark.parametrize("runner", ["local", "container"])
def test_an_engine_is_built_and_recorded(
    runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks, configuration and record arrive; commands hold no path of the machine."""
    install(tmp_path / "machine", monkeypatch)
    plan = plan_of()
    job = job_of(tmp_path, plan, runner=runner, image=IMAGE)

    engine_worker.run(job, ignore)

    found = sorted(x.relative_to(job.out).as_posix() for x in job.out.rglob("*"))
    assert found == list(expected_files(plan))
    record = json.loads((job.out / "engine.json").read_text())
    assert record["gpu"] == "NVIDIA A10G"
    assert record["compute_capability"] == "8.6"
    assert (record["trtllm"], record["tensorrt"]) == ("0.12.0", "10.3.0")
    assert record["image"] == (IMAGE if runner == "container" else "")
    assert str(tmp_path) not in (job.out / "engine.json").read_text()
    assert list(job.state.iterdir()) == []


def test_a_container_runs_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a container is told is what this environment would be told."""
    install(tmp_path / "machine", monkeypatch)
    plan = plan_of()
    commands = []
    for runner in ("local", "container"):
        job = job_of(tmp_path / runner, plan, runner=runner, image=IMAGE)
        engine_worker.run(job, ignore)
        record = json.loads((job.out / "engine.json").read_text())
        commands.append(record["commands"])

    assert commands[0] == commands[1]
    log = (tmp_path / "machine" / "docker.log").read_text().splitlines()
    assert log == [f"run {IMAGE} python3", f"run {IMAGE} trtllm-build"]


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("fail", "trtllm.command-failed", "exit status 1"),
        ("fail", "trtllm.command-failed", "out of memory"),
        ("killed", "trtllm.command-failed", "signal 9"),
        ("missing-rank", "trtllm.engine-differs", "missing: 1"),
        ("smaller", "trtllm.engine-differs", "`max_batch_size` 15"),
        ("larger", "trtllm.engine-differs", "`max_num_tokens` 8200"),
        ("version", "trtllm.engine-differs", "0.11.0"),
        ("algorithm", "trtllm.engine-differs", "W8A16"),
        ("path", "compile.engine-not-portable", "path of this machine"),
    ],
)
def test_a_builder_that_goes_wrong(
    fault: str, code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clear error with the numbers, and nothing of the engine is kept."""
    install(tmp_path / "machine", monkeypatch, fault=fault)

    error = fault_of(job_of(tmp_path, plan_of()))

    assert isinstance(error, StageFailed)
    assert error.code == code
    assert words in error.message


def test_a_container_that_fails_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit status is ours to tell, and its name is given back."""
    install(tmp_path / "machine", monkeypatch, fault="fail")
    job = job_of(tmp_path, plan_of(), runner="container", image=IMAGE)

    error = fault_of(job)

    assert error.code == "trtllm.command-failed"
    log = (tmp_path / "machine" / "docker.log").read_text().splitlines()
    assert log[-1] == f"rm lmi-build-{os.getpid()}"


def test_a_worker_that_is_ended_ends_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container is no child of ours, and would build on."""
    install(tmp_path / "machine", monkeypatch, fault="slow")
    job = job_of(tmp_path, plan_of(), runner="container", image=IMAGE)

    status, pid = end_worker(
        job,
        engine_worker.__name__,
        said="TensorRT-LLM version",
        search_path=[os.environ["PYTHONPATH"]],
    )

    assert status == 128 + 15
    log = (tmp_path / "machine" / "docker.log").read_text().splitlines()
    assert log[-1] == f"rm lmi-build-{pid}"
    assert list(job.out.iterdir()) == []
    assert list(job.state.iterdir()) == []


def test_a_program_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without Docker says so."""
    install(tmp_path / "machine", monkeypatch)
    (tmp_path / "machine" / "bin" / "docker").unlink()
    job = job_of(tmp_path, plan_of(), runner="container", image=IMAGE)

    error = fault_of(job)

    assert isinstance(error, ToolMissing)
    assert "docker" in error.message


@pytest.mark.parametrize(
    ("machine", "settings", "kind", "code"),
    [
        ({"gpus": NO_DRIVER}, {}, ToolMissing, "trtllm.no-gpu"),
        ({"gpus": T4}, {}, Unsupported, "trtllm.wrong-gpu"),
        ({}, {"gpu_bytes": 30 << 30}, DoesNotFit, "trtllm.gpu-memory"),
        ({}, {"host_bytes": 1 << 50}, DoesNotFit, "trtllm.host-memory"),
        ({}, {"disk_bytes": 1 << 60}, DoesNotFit, "trtllm.disk"),
        ({"version": "0.11.0"}, {}, ToolMissing, "trtllm.wrong-version"),
        ({"module": ""}, {}, ToolMissing, "trtllm.broken"),
        ({"module": "import no_such_library"}, {}, ToolMissing, "trtllm.broken"),
    ],
)
def test_a_machine_that_will_not_do(
    machine: dict[str, str],
    settings: dict[str, int],
    kind: type[LmiBuildError],
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is refused before the builder starts."""
    install(tmp_path / "machine", monkeypatch, fault="fail", **machine)

    error = fault_of(job_of(tmp_path, plan_of(), **settings))

    assert isinstance(error, kind)
    assert error.code == code


def test_timings_outlive_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second build on the same GPU starts from the first one's timings."""
    install(tmp_path / "machine", monkeypatch)
    plan = plan_of()
    caches = tmp_path / "caches"
    for name in ("first", "second"):
        job = job_of(tmp_path / name, plan, timing_cache=str(caches))
        engine_worker.run(job, ignore)

    (cache,) = caches.iterdir()
    assert cache.name == "nvidia-a10g-10.3.0.cache"
    assert cache.read_text() == "timed;timed;"


def test_a_failed_build_leaves_the_timings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timings of a build that went wrong are not kept."""
    install(tmp_path / "machine", monkeypatch, fault="smaller")
    caches = tmp_path / "caches"

    fault_of(job_of(tmp_path, plan_of(), timing_cache=str(caches)))

    assert not caches.exists()


@pytest.mark.parametrize("runner", ["local", "container"])
def test_ranks_are_built_on_free_gpus(
    runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy GPU is left out, and there are as many workers as free ones."""
    lines = [f"{i}, NVIDIA A10G, 8.6, 23028, {22000 + i}, 550" for i in (0, 1, 3)]
    busy = "2, NVIDIA A10G, 8.6, 23028, 900, 550"
    install(tmp_path / "machine", monkeypatch, gpus="\n".join([*lines, busy]))
    job = job_of(
        tmp_path, plan_of(tensor=4), runner=runner, image=IMAGE, gpu_bytes=8 << 30
    )

    engine_worker.run(job, ignore)

    (command,) = json.loads((job.out / "engine.json").read_text())["commands"]
    assert command[-2:] == ["--workers", "3"]
    seen = json.loads((job.out / "config.json").read_text())["build_config"]["gpus"]
    assert seen == "3,1,0"


def test_a_machine_that_is_nearly_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is built, and what may make it slow or useless is said."""
    line = "0, NVIDIA A40, 8.6, 46068, 45000, 550.163.01"
    install(tmp_path / "machine", monkeypatch, gpus=line, tensorrt="10.1.0")
    events: list[Event] = []

    engine_worker.run(job_of(tmp_path, plan_of()), events.append)

    notes = [event for event in events if isinstance(event, StageNote)]
    assert [note.code for note in notes] == [
        "trtllm.other-gpu",
        "trtllm.other-tensorrt",
    ]


@pytest.mark.parametrize("runner", ["local", "container"])
def test_a_model_goes_through_the_converter(
    runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lmi-build does not write itself is converted first, then built."""
    install(tmp_path / "machine", monkeypatch)
    plan = lowered(RELEASE, architecture="PhiForCausalLM")
    assert plan.conversion is not None
    examples = install_converter(tmp_path, plan.conversion.script)
    source = model_folder(tmp_path / "source", "PhiForCausalLM")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    job = engine_job(
        tmp_path,
        plan,
        {"source": source},
        runner=runner,
        image=IMAGE,
        examples=str(examples),
    )

    engine_worker.run(job, ignore)

    record = json.loads((job.out / "engine.json").read_text())
    assert [words[0] for words in record["commands"]] == ["python3", "trtllm-build"]
    assert sorted(x.name for x in source.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def model_folder(folder: Path, architecture: str) -> Path:
    """A model as far as the converter here reads it."""
    folder.mkdir(parents=True)
    config = {"architectures": [architecture], "quantization_config": {"bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_converter_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither wheels nor images have it; the hint says where it is."""
    install(tmp_path / "machine", monkeypatch)
    plan = lowered(RELEASE, architecture="PhiForCausalLM")
    source = model_folder(tmp_path / "source", "PhiForCausalLM")
    job = engine_job(tmp_path, plan, {"source": source})

    error = fault_of(job)

    assert isinstance(error, ToolMissing)
    assert error.code == "trtllm.converter-missing"
    assert "--branch v0.12.0" in error.hints[0]


def test_gptq_weights_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converter opens one file, so two are refused before it starts."""
    install(tmp_path / "machine", monkeypatch)
    plan = lowered(RELEASE, "gptq", architecture="BaichuanForCausalLM")
    assert plan.conversion is not None
    examples = install_converter(tmp_path, plan.conversion.script)
    source = model_folder(tmp_path / "source", "BaichuanForCausalLM")
    (source / "model-2.safetensors").write_bytes(b"weights")
    job = engine_job(tmp_path, plan, {"source": source}, examples=str(examples))

    error = fault_of(job)

    assert isinstance(error, Unsupported)
    assert error.code == "trtllm.sharded-gptq"


def test_a_rehearsal_needs_no_machine(tmp_path: Path) -> None:
    """The same plan without a GPU: commands and files, marked as what it is."""
    plan = plan_of()
    job = job_of(tmp_path, plan, image=IMAGE)

    rehearsal.run(job, ignore)

    document = json.loads((job.out / "rehearsal.json").read_text())
    assert document["rehearsal"] is True
    assert document["expected_files"] == list(expected_files(plan))
    assert document["commands"][0][0] == "trtllm-build"
    assert (
        document["container"][0][-len(document["commands"][0]) + 1 :]
        == (document["commands"][0][1:])
    )
    assert [path.name for path in job.out.iterdir()] == ["rehearsal.json"]


def test_needs_grow_with_the_checkpoint() -> None:
    """More bytes need more of everything, more ranks need less at a time."""
    small, large = engine_needs(1 << 30, 1), engine_needs(8 << 30, 1)
    split = engine_needs(8 << 30, 8)

    assert all(large[name] > small[name] for name in small)
    assert split["gpu_bytes"] == small["gpu_bytes"]
    assert split["disk_bytes"] == large["disk_bytes"]


def test_the_fake_toolchain_is_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What these tests call is found on PATH and ends by itself."""
    install(tmp_path, monkeypatch)

    done = subprocess.run(["nvidia-smi"], capture_output=True, check=True)

    assert done.stdout.startswith(b"0, NVIDIA A10G")
