"""The compile stage of Neuron models, whole: toolchain, driver, graphs, folder."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.neuronx import compile_worker, rehearsal
from lmi_build.backends.neuronx.workplace import request, ship
from lmi_build.events import Event, StageNote, StageProgress, ignore
from neuron_machine import (
    NEW,
    OLD,
    files_of,
    install,
    llama_call,
    llama_folder,
    llama_plan,
    neuron_job,
)

if TYPE_CHECKING:
    from lmi_build.spi import Job

WORKDIR = str(Path("/tmp"))  # noqa: S108 - LMI's own, where nothing is written
IMAGE = "registry.example/djl-inference@sha256:" + "0" * 64
LAYOUT = [
    "compiled/DecoderLMHead.safetensors",
    "compiled/VERSION",
    "compiled/config.json",
    "compiled/decoder_layer_0.safetensors",
    "compiled/decoder_layer_1.safetensors",
    "config.json",
    "neuron.json",
]
# Loads what was built as LMI does, and says whether every graph was found.
LOAD = """\
import json, sys
sys.path.insert(0, sys.argv[1])
from neuron_drivers.common import Session
from transformers_neuronx import NeuronAutoModelForCausalLM as Auto
asked = json.loads(open(sys.argv[2]).read())
session = Session(asked, "none")
compiled = sys.argv[3] + "/compiled"
model = Auto.from_pretrained(compiled, **session.make(asked["call"]["arguments"]))
model.load(compiled)
model.to_neuron()
print(len(model.neffs))
"""


def record_of(job: Job) -> dict[str, object]:
    """The record of a build."""
    found: dict[str, object] = json.loads((job.out / "neuron.json").read_text())
    return found


def neffs_of(job: Job) -> list[str]:
    """Names of the graphs."""
    return sorted(path.name for path in (job.out / "compiled").glob("*.neff"))


@pytest.mark.parametrize(
    ("runner", "release", "devices", "method"),
    [
        ("local", NEW, 0, "cpu_compile"),
        ("local", NEW, 1, "to_neuron"),
        ("local", OLD, 1, "to_neuron"),
        ("container", NEW, 0, "cpu_compile"),
        ("container", OLD, 1, "to_neuron"),
    ],
)
def test_a_model_is_compiled_and_recorded(
    runner: str,
    release: str,
    devices: int,
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Graphs, weights by core, configuration and record arrive, nothing else."""
    install(tmp_path / "machine", monkeypatch, release=release, devices=devices)
    job = neuron_job(tmp_path, llama_plan(release=release), runner=runner, image=IMAGE)
    events: list[Event] = []

    compile_worker.run(job, events.append)

    neffs = [f"compiled/{name}" for name in neffs_of(job)]
    assert len(neffs) == 3
    assert files_of(job.out) == sorted([*LAYOUT, *neffs])
    record = record_of(job)
    assert record["compiled_by"] == method
    assert record["graphs"] == [name.removesuffix(".neff") for name in neffs_of(job)]
    assert record["cwd"] == WORKDIR
    assert record["compiler_flags"] == [
        *("--logfile", f"{WORKDIR}/compile.log"),
        *("--model-type=transformer", "--auto-cast=none"),
    ]
    assert record["effective"] == {
        "batch_sizes": [4],
        "context_batch_sizes": [1],
        "context_buckets": [64, 128],
        "group_query_attention": "shard-over-heads",
        "token_buckets": [256],
        "unroll": 2,
    }
    assert record["image"] == (IMAGE if runner == "container" else "")
    assert list(job.state.iterdir()) == []
    progress = [event.done for event in events if isinstance(event, StageProgress)]
    assert progress == [0, 1, 2, 3]


def test_the_folder_says_what_lmi_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VERSION is the compiler's own text, and `neuron` marks the configuration."""
    install(tmp_path / "machine", monkeypatch)
    job = neuron_job(tmp_path, llama_plan())

    compile_worker.run(job, ignore)

    assert (job.out / "compiled" / "VERSION").read_text() == "2.16.372.0+4a9b2326"
    config = json.loads((job.out / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["neuron"] == {
        "auto_cast_type": "bf16",
        "compiler_type": "neuronx-cc",
        "compiler_version": "2.16.372.0+4a9b2326",
    }
    compiled = json.loads((job.out / "compiled" / "config.json").read_text())
    assert compiled["is_presharded_checkpoint"] is True


def test_what_was_built_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call on the built folder asks for the graphs that are there."""
    install(tmp_path / "machine", monkeypatch)
    plan = llama_plan()
    job = neuron_job(tmp_path, plan)
    compile_worker.run(job, ignore)
    ship(tmp_path / "driver")
    asked = tmp_path / "call.json"
    asked.write_text(json.dumps(request(plan, model="", device=True)))

    words = [str(tmp_path / "driver"), str(asked), str(job.out)]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *words],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.strip() == "3", done.stderr


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {"fuse_qkv": True}},
        {"arguments": {"amp": "f16"}},
        {"arguments": {"context_length_estimate": [64, 256]}},
        {"arguments": {"n_positions": [255]}},
    ],
)
def test_another_call_makes_other_graphs(
    changed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No argument is lost between the recipe's call and the graphs."""
    install(tmp_path / "machine", monkeypatch)
    one = neuron_job(tmp_path / "one", llama_plan())
    other = neuron_job(tmp_path / "other", llama_plan(llama_call(**changed)))

    compile_worker.run(one, ignore)
    compile_worker.run(other, ignore)

    assert not set(neffs_of(one)) & set(neffs_of(other))


def test_a_container_gets_devices_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees the model read-only, has a name and no GPU; the probe has no device."""
    machine = tmp_path / "machine"
    install(machine, monkeypatch, release=OLD, devices=2)
    job = neuron_job(tmp_path, llama_plan(release=OLD), runner="container", image=IMAGE)

    compile_worker.run(job, ignore)

    probe, build = map(json.loads, (machine / "docker.log").read_text().splitlines())
    assert (probe["words"][1], probe["devices"], probe["name"]) == ("probe", [], "")
    assert build["devices"] == ["/dev/neuron0", "/dev/neuron1"]
    assert build["readonly"] == ["/work/source"]
    assert build["words"] == [
        "/work/driver",
        "build",
        "/work/call.json",
        "/work/result",
    ]
    assert build["name"].startswith("lmi-build-")


def test_a_container_and_this_environment_make_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is built is in no graph and in no file but the record."""
    install(tmp_path / "machine", monkeypatch)
    jobs = [
        neuron_job(tmp_path / runner, llama_plan(), runner=runner, image=IMAGE)
        for runner in ("local", "container")
    ]

    for job in jobs:
        compile_worker.run(job, ignore)

    one, other = (
        {name: (job.out / name).read_bytes() for name in files_of(job.out)}
        for job in jobs
    )
    assert one.pop("neuron.json") != other.pop("neuron.json")
    assert one == other


@pytest.mark.parametrize("release", [OLD, NEW])
def test_weights_may_lie_beside_the_graphs(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older layout: a checkpoint as it was, and graphs without weights."""
    install(tmp_path / "machine", monkeypatch, release=release)
    steps: tuple[tuple[str, dict[str, Any]], ...] = (
        ("checkpoint", {"directory": {"path": "checkpoint"}}),
        ("to_neuron", {}),
        ("save", {"directory": {"path": "compiled"}}),
    )
    call = llama_call(steps=steps, files=("checkpoint/model.safetensors",))
    job = neuron_job(tmp_path, llama_plan(call, release=release))

    compile_worker.run(job, ignore)

    assert sorted(path.name for path in (job.out / "checkpoint").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    source = job.inputs["source"] / "model.safetensors"
    made = job.out / "checkpoint" / "model.safetensors"
    assert made.read_bytes() == source.read_bytes()
    assert [x for x in files_of(job.out / "compiled") if not x.endswith("neff")] == [
        "VERSION"
    ]


def test_the_host_has_no_say_in_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables of the machine that would change graphs or caches are not passed on."""
    install(tmp_path / "machine", monkeypatch)
    monkeypatch.setenv("NEURON_CC_FLAGS", "-O3")
    monkeypatch.setenv("NEURON_COMPILE_CACHE_URL", str(tmp_path / "mine"))
    call = llama_call(environment={})
    job = neuron_job(tmp_path, llama_plan(call))

    compile_worker.run(job, ignore)

    flags = ["--model-type=transformer", "--auto-cast=none"]
    assert record_of(job)["compiler_flags"] == flags
    assert not (tmp_path / "mine").exists()


def test_a_toolchain_elsewhere_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages that lie elsewhere than the image's are a warning with both places."""
    site = install(tmp_path / "machine", monkeypatch)
    events: list[Event] = []

    compile_worker.run(neuron_job(tmp_path, llama_plan()), events.append)

    (note,) = [event for event in events if isinstance(event, StageNote)]
    assert note.code == "neuronx.other-prefix"
    assert str(site) in note.message
    assert "/usr/local/lib/python3.10/dist-packages" in note.message


def test_a_rehearsal_needs_no_machine(tmp_path: Path) -> None:
    """The call, its environment and what it would make, marked as what it is."""
    plan = llama_plan(expected={"token_buckets": [256]})
    job = neuron_job(tmp_path, plan, image=IMAGE, num_devices=2)

    rehearsal.run(job, ignore)

    document = json.loads((job.out / "rehearsal.json").read_text())
    assert document["rehearsal"] is True
    assert document["num_graphs"] == document["num_neffs"] == 3
    assert document["request"]["call"] == plan.to_json()["call"]
    assert document["expected_values"] == {"token_buckets": [256]}
    assert document["environment"]["NEURON_COMPILE_CACHE_URL"] == "/work/cache"
    words = document["container"]
    assert [words[i + 1] for i, x in enumerate(words) if x == "--device"] == [
        "/dev/neuron0",
        "/dev/neuron1",
    ]
    assert files_of(job.out) == ["rehearsal.json"]
    assert str(tmp_path) not in (job.out / "rehearsal.json").read_text()


def test_the_drivers_are_of_an_old_python(tmp_path: Path) -> None:
    """They are shipped whole, and hide no package of the toolchain."""
    ship(tmp_path / "driver")

    assert sorted(path.name for path in (tmp_path / "driver").iterdir()) == [
        "__main__.py",
        "neuron_drivers",
    ]
    for path in (tmp_path / "driver").rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))


def test_a_model_without_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own list is in the message."""
    install(tmp_path / "machine", monkeypatch)
    source = llama_folder(tmp_path / "source", kind="qwen2")
    job = neuron_job(tmp_path, llama_plan(), source)

    with pytest.raises(Exception, match="`qwen2`, only for bloom") as caught:
        compile_worker.run(job, ignore)

    assert getattr(caught.value, "code", "") == "neuronx.no-class"
