"""Hosts that share a plan build each stage once, and survive each other."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.store.gc import verify_store
from lmi_build.store.store import Store
from lmi_build.values.stage import Plan, PlannedArtifact
from shared_stores import bucket_server, build, ended, host, names, objects, start
from stage_plans import stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faulty_s3 import FaultyS3
    from lmi_build.digest import JSONValue

TESTS = Path(__file__).parents[1]


# Each starts Python several times.
pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    """A server that holds the bucket."""
    with bucket_server() as found:
        yield found


def matrix(counter: Path, *, run: str = "write", **job: JSONValue) -> Plan:
    """One fetch, three quantizations of it, and an engine of each."""
    given: dict[str, JSONValue] = {"counter": str(counter), **job}
    first = replace(stage("fetch", job=given), name="all/fetch")
    stages, artifacts = [first], []
    for name in ("a", "b", "c"):
        inputs = {"model": first.key}
        middle = stage("quantize", run, text=name, inputs=inputs, job=given)
        inputs = {"checkpoint": middle.key}
        last = stage("compile", text=name, inputs=inputs, job=given)
        stages += [
            replace(middle, name=f"{name}/quantize"),
            replace(last, name=f"{name}/compile"),
        ]
        kinds = {"quantize": middle.key, "compile": last.key}
        artifacts.append(PlannedArtifact(name=name, stages=kinds))
    return Plan(recipe="all", stages=tuple(stages), artifacts=tuple(artifacts))


def built(lines: list[dict[str, Any]]) -> list[str]:
    """Names of stages that a host finished."""
    return [line["stage"] for line in lines if line["event"] == "stage-finished"]


def test_three_hosts_build_each_stage_once(tmp_path: Path, server: FaultyS3) -> None:
    """Every stage of the plan ran exactly once, and every host has them all."""
    counter = tmp_path / "count"
    plan = matrix(counter, sleep=0.2)
    hosts = [start(tmp_path, server, f"algo-{n}", plan) for n in (1, 2, 3)]

    results = [ended(process) for process in hosts]

    assert [status for status, _ in results] == [0, 0, 0]
    assert sorted(counter.read_text().split()) == sorted(s.name for s in plan.stages)
    assert build(plan, host(tmp_path / "fresh", server)).num_built == 0
    left = [key for key in objects(server) if key.startswith(("leases/", "state/"))]
    assert left == []


@pytest.mark.parametrize("seed", range(2))
def test_killed_host_loses_its_stage_only(
    tmp_path: Path, server: FaultyS3, seed: int
) -> None:
    """After SIGKILL at a random moment nothing but its stage is built twice."""
    counter = tmp_path / "count"
    plan = matrix(counter, sleep=0.3)
    doomed = start(tmp_path, server, "algo-1", plan)
    others = [start(tmp_path, server, f"algo-{n}", plan) for n in (2, 3)]
    stop_after = random.Random(seed).randrange(1, 12)  # noqa: S311

    assert doomed.stdout is not None
    seen = []
    for line in doomed.stdout:
        seen.append(json.loads(line))
        if len(seen) == stop_after:
            break
    doomed.kill()
    rest, _ = doomed.communicate()
    seen += [
        json.loads(line) for line in rest.splitlines(keepends=True) if "\n" in line
    ]
    results = [ended(process) for process in others]

    assert [status for status, _ in results] == [0, 0]
    names = counter.read_text().split()
    twice = {name for name in names if names.count(name) > 1}
    started = [e["stage"] for e in seen if e["event"] == "stage-started"]
    finished = [e["stage"] for e in seen if e["event"] == "stage-finished"]
    assert twice <= set(started[len(finished) :])
    assert set(names) == {stage.name for stage in plan.stages}
    assert build(plan, host(tmp_path / "fresh", server)).num_built == 0
    for folder in ("algo-2", "algo-3"):
        assert verify_store(Store(tmp_path / folder / "store")) == []


def test_paused_host_comes_back_too_late(tmp_path: Path, server: FaultyS3) -> None:
    """A host that loses its lease while it builds may end its work; the first stays."""
    counter = tmp_path / "count"
    steps = replace(
        stage("quantize", "resume", job={"counter": str(counter), "slow": 0.3}),
        name="a/quantize",
    )
    plan = Plan(recipe="all", stages=(steps,), artifacts=())
    paused = start(tmp_path, server, "algo-1", plan)
    assert paused.stdout is not None
    for line in paused.stdout:
        if json.loads(line).get("done") == 1:
            break
    paused.send_signal(signal.SIGSTOP)
    status, lines = ended(start(tmp_path, server, "algo-2", plan))
    paused.send_signal(signal.SIGCONT)
    late = ended(paused)

    assert (status, late[0]) == (0, 0)
    assert built(lines) == ["a/quantize"]
    (record,) = [name for name in names(server) if name.startswith("actions/")]
    assert record.endswith(f"{steps.key.removeprefix('sha256:')}.json")
    assert build(plan, host(tmp_path / "fresh", server)).num_built == 0
    for folder in ("algo-1", "algo-2"):
        assert verify_store(Store(tmp_path / folder / "store")) == []


def test_another_host_goes_on_where_one_was_killed(
    tmp_path: Path, server: FaultyS3
) -> None:
    """Steps that a killed host finished are not done again elsewhere."""
    counter = tmp_path / "count"
    steps = replace(
        stage("quantize", "resume", job={"counter": str(counter), "slow": 0.4}),
        name="a/quantize",
    )
    plan = Plan(recipe="all", stages=(steps,), artifacts=())
    doomed = start(tmp_path, server, "algo-1", plan)
    assert doomed.stdout is not None
    for line in doomed.stdout:
        if json.loads(line).get("done") == 3:
            break
    doomed.kill()
    doomed.communicate()

    status, lines = ended(start(tmp_path, server, "algo-2", plan))

    assert status == 0
    assert built(lines) == ["a/quantize"]
    done = counter.read_text().split()
    assert sorted(set(done)) == ["0", "1", "2", "3", "4"]
    assert done.count("0") == done.count("1") == 1


def test_failed_stage_is_tried_once_in_a_run(tmp_path: Path, server: FaultyS3) -> None:
    """Every host ends with the error, and everything else is built first."""
    counter = tmp_path / "count"
    plan = matrix(counter)
    bad = replace(stage("verify", "refuse"), name="d/verify")
    plan = replace(plan, stages=(bad, *plan.stages))
    hosts = [start(tmp_path, server, f"algo-{n}", plan) for n in (1, 2)]

    results = [ended(process) for process in hosts]

    assert [status for status, _ in results] == [1, 1]
    events = [line for _, lines in results for line in lines]
    assert [e["failed"] for e in events if "failed" in e] == ["source.test"] * 2
    failed = [e for e in events if e.get("event") == "stage-failed"]
    assert len(failed) == 1
    assert len(counter.read_text().split()) == len(plan.stages) - 1
