"""What a container refuses in its first minute, and what it is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.errors import DoesNotFit, ToolMissing, UsageInvalid
from lmi_build.sagemaker import checks
from lmi_build.sagemaker.places import Places, find_places, read_document, read_told
from lmi_build.sagemaker.stopping import usable_seconds
from lmi_build.units import GiB
from lmi_build.values.job import JobDocument, job_to_json
from lmi_build.values.settings import Settings
from lmi_build.values.stage import Estimate, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.sagemaker.places import Told

WORKER = "lmi_build.package.worker:run"


def stage(**changes: Any) -> Stage:
    """A stage of no particular kind."""
    fields = {
        "name": "r/compile",
        "kind": "compile",
        "params": {},
        "inputs": {},
        "tools": {},
        "platform": "any",
        "salt": 0,
        "entry": WORKER,
        **changes,
    }
    return Stage(**fields)


def machine(disk: int = 100 * GiB, memory: int = 100 * GiB) -> checks.Machine:
    """A host of this size."""
    return checks.Machine(free_disk_bytes=disk, memory_bytes=memory)


def test_every_other_tool_is_named(tmp_path: Path) -> None:
    """One error lists them all, absent ones too, with both versions."""
    moved = stage(tools={"pytest": "0.0.1", "no-such-tool": "3.2", "hypothesis": "0"})

    with pytest.raises(ToolMissing) as caught:
        checks.refuse_other_tools([moved], Settings(cache_dir=tmp_path), name="job-7")

    assert caught.value.code == "job.other-tools"
    assert "no-such-tool 3.2 here absent" in caught.value.message
    assert "pytest 0.0.1 here" in caught.value.message
    assert "hypothesis 0 here" in caught.value.message
    assert "--tools-from job-7" in caught.value.hints[0]


def test_a_plan_that_lacked_a_tool_wants_it_absent_here(tmp_path: Path) -> None:
    """`absent` is a version like others: equal is equal."""
    settings = Settings(cache_dir=tmp_path)

    checks.refuse_other_tools(
        [stage(tools={"no-such-tool": "absent"})], settings, name="j"
    )

    with pytest.raises(ToolMissing):
        checks.refuse_other_tools(
            [stage(tools={"pytest": "absent"})], settings, name="j"
        )


@pytest.mark.parametrize("entry", ["no_such_plugin.worker:run", "lmi_build.nothing:x"])
def test_an_entry_that_is_not_here_is_refused(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ToolMissing) as caught:
        checks.refuse_other_tools(
            [stage(entry=entry)], Settings(cache_dir=tmp_path), name="j"
        )

    assert caught.value.code == "job.foreign-entry"


def test_disk_counts_inputs_results_and_the_largest_scratch() -> None:
    """3 + 2 results, 4 of inputs, 5 of scratch: 14 GiB are needed, 13 do not do."""
    stages = [
        stage(estimate=Estimate(disk_bytes=3 * GiB, scratch_bytes=1 * GiB)),
        stage(estimate=Estimate(disk_bytes=2 * GiB, scratch_bytes=5 * GiB)),
    ]

    checks.refuse_too_small(stages, 4 * GiB, machine(disk=14 * GiB))

    with pytest.raises(DoesNotFit) as caught:
        checks.refuse_too_small(stages, 4 * GiB, machine(disk=13 * GiB))
    assert caught.value.code == "job.disk-too-small"
    assert "14.0 GiB" in caught.value.message
    assert caught.value.hints == ("raise `job.volume_size_gb` by 1 GB",)


def test_memory_names_the_stage_that_needs_most() -> None:
    small = stage(name="r/verify", kind="verify", estimate=Estimate(ram_bytes=GiB))
    large = stage(estimate=Estimate(ram_bytes=96 * GiB))

    checks.refuse_too_small([small], 0, machine(memory=GiB))

    with pytest.raises(DoesNotFit) as caught:
        checks.refuse_too_small([small, large], 0, machine(memory=95 * GiB))
    assert caught.value.code == "job.memory-too-small"
    assert caught.value.message.startswith("r/compile needs 96.0 GiB")
    assert "`job.instances.compile`" in caught.value.hints[0]


def test_the_least_limit_counts(tmp_path: Path) -> None:
    """The host's memory, or the container's where that is less."""
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal:       4 kB\nMemFree: 1 kB\n")
    limit.write_text("max\n")
    without = checks.memory_bytes(meminfo, [str(limit), str(tmp_path / "none")])
    limit.write_text("3000\n")

    assert without == 4096
    assert checks.memory_bytes(meminfo, [str(limit)]) == 3000


def test_what_nobody_makes_is_refused_before_any_work() -> None:
    """An input of another job that is not there ends the job at once."""
    absent = stage().key
    needing = stage(inputs={"engine": absent})

    checks.refuse_absent_inputs([needing], {})

    with pytest.raises(ToolMissing) as caught:
        checks.refuse_absent_inputs([needing], {absent: None})
    assert caught.value.code == "job.absent-input"
    assert absent in caught.value.message


DOCUMENT = JobDocument(
    name="planned", kind="processing", stages=(), store="", wheel="w.whl"
)


def lay(root: Path, files: dict[str, object]) -> Path:
    """Files below a root, as JSON."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def read_all(root: Path) -> Told:
    """What a container reads before anything else."""
    places = find_places(root)
    return read_told(places, read_document(places), {})


RESOURCES = {"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}


def test_processing_reads_sagemakers_own_files(tmp_path: Path) -> None:
    """Name and limit of the request win over what the document says."""
    config = {
        "ProcessingJobName": "planned-2",
        "StoppingCondition": {"MaxRuntimeInSeconds": 77},
    }
    lay(
        tmp_path,
        {
            "processing/input/job/job.json": job_to_json(DOCUMENT),
            "config/processingjobconfig.json": config,
            "config/resourceconfig.json": RESOURCES,
        },
    )

    places = find_places(tmp_path)
    told = read_told(places, read_document(places), {})

    assert places.kind == "processing"
    assert (told.name, told.host, told.index) == ("planned-2", "algo-2", 1)
    assert told.max_runtime_seconds == 77


def test_training_reads_its_own(tmp_path: Path) -> None:
    """The name is in the environment; failure is told in another file."""
    lay(
        tmp_path,
        {
            "input/data/job/job.json": job_to_json(DOCUMENT),
            "input/config/resourceconfig.json": RESOURCES,
        },
    )

    places = find_places(tmp_path)
    told = read_told(places, DOCUMENT, {"TRAINING_JOB_NAME": "planned-3"})

    assert (places.kind, told.name) == ("training", "planned-3")
    assert places.message(ok=False) == tmp_path / "output/failure"
    assert places.message(ok=True) is None


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "job.no-channel"),
        ({"processing/input/job/job.json": "{"}, "job.bad-document"),
        ({"processing/input/job/job.json": {"schema": "other"}}, "job.bad-document"),
        (
            {"processing/input/job/job.json": job_to_json(DOCUMENT)},
            "job.bad-config",
        ),
        (
            {
                "processing/input/job/job.json": job_to_json(DOCUMENT),
                "config/processingjobconfig.json": {},
                "config/resourceconfig.json": {"current_host": "x", "hosts": ["y"]},
            },
            "job.bad-config",
        ),
        (
            {
                "processing/input/job/job.json": job_to_json(DOCUMENT),
                "config/processingjobconfig.json": {"ProcessingJobName": "../../x"},
                "config/resourceconfig.json": RESOURCES,
            },
            "job.bad-config",
        ),
        (
            {
                "processing/input/job/job.json": job_to_json(DOCUMENT),
                "config/processingjobconfig.json": "[1]",
                "config/resourceconfig.json": RESOURCES,
            },
            "job.bad-config",
        ),
    ],
)
def test_what_is_not_whole_is_named(
    tmp_path: Path, files: dict[str, object], code: str
) -> None:
    lay(tmp_path, files)

    with pytest.raises(UsageInvalid) as caught:
        read_all(tmp_path)

    assert caught.value.code == code


def test_places_of_both_kinds_do_not_meet(tmp_path: Path) -> None:
    """No output lies in another; the volume is in none, so that nothing leaks out."""
    for kind in ("processing", "training"):
        places = Places(kind=kind, root=tmp_path)
        report, store = places.output("report"), places.output("store")

        assert report not in store.parents
        assert store not in report.parents
        assert not {report, store} & {*places.volume.parents, places.volume}


@pytest.mark.parametrize(
    ("limit", "usable"), [(3600, 3480), (600, 540), (10, 9), (1, 1)]
)
def test_a_job_ends_itself_before_it_is_ended(limit: float, usable: float) -> None:
    """120 s are kept for state, or a tenth of a short limit."""
    assert usable_seconds(limit) == usable
