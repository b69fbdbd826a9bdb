"""Jobs on this machine: the same artifact as here, and every way to end early."""

from __future__ import annotations

import importlib.util
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.jobs_faults import NUM_HOSTS, build, check
from desk import Desk
from faulty_s3 import FaultyS3
from lmi_build.jobs.simulation.fault import Fault, parse_fault
from lmi_build.jobs.simulation.server import s3_server
from lmi_build.values.job import result_from_json
from sagemaker_jobs import (
    BUCKET,
    LOCAL,
    MATRIX,
    SINGLE,
    STORE,
    Bench,
    make_matrix,
)
from tiny_wheel import tiny_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.values.stage import Plan

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="stages need torch"
)


# Six artifacts: three ways to quantize the model, two batch sizes.
SIX = MATRIX.replace("[1, 2, 4, 8]", "[1, 4]")
OWN_INSTANCE = """\
[instances.g9]
accelerator = "gpu"
device = "L4"
device_memory_mib = 22888
cores_per_device = 1
compute_capability = "8.9"
own_disk = true
source = "our account team"
uses = ["training", "endpoint"]
sizes = { 2xlarge = [1, 8, 32] }
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server with one bucket."""
    with s3_server() as url:
        Bench(url=url, root=None).client.create_bucket(Bucket=BUCKET)  # type: ignore[arg-type]
        yield url


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a recipe of one artifact."""
    root = tmp_path_factory.mktemp("room")
    make_matrix(root, SINGLE)
    return root


@pytest.fixture
def bench(server: str, room: Path) -> Bench:
    """An empty store."""
    found = Bench(url=server, root=room)
    found.empty("store/")
    return found


def plan_of(bench: Bench) -> Plan:
    """One artifact's plan, unmeasured; its sources are in the store."""
    return bench.without_verify(bench.plan(bench.root / "recipe.yaml"))


def result_of(bench: Bench, name: str = "tiny-job", host: str = "algo-1") -> Any:
    """What a host wrote into the store."""
    return result_from_json(bench.read(f"jobs/{name}/{host}.json"))


def test_a_job_makes_what_a_build_here_makes(room: Path) -> None:
    """Same keys, same artifact digest; the command tells both."""
    desk = Desk(room)

    job = desk.run("job", "simulate", "recipe.yaml", "--output", "json")
    here = desk.run("build", "recipe.yaml", "--output", "json")

    assert job.status == 0, job.err
    assert here.status == 0, here.err
    assert here.json["num_built"] == 4
    keys = {row["name"]: row["key"] for row in here.json["stages"]}
    assert job.json["keys"] == keys
    digests = [row["manifest_digest"] for row in here.json["artifacts"]]
    assert [row["manifest_digest"] for row in job.json["artifacts"]] == digests
    assert set(job.json["built"].values()) == {1}
    assert job.json["jobs"][0]["hosts"][0]["message"].startswith("ok\n")


def test_a_plan_for_an_instance_of_ones_own_needs_no_catalogue(room: Path) -> None:
    """The container has only ours; the plan carries what the user's tables said."""
    desk = Desk(room)
    (room / "ours.toml").write_text(OWN_INSTANCE)
    own = ("--set", "compile.target=ml.g9.2xlarge", "--catalog", "ours.toml")

    job = desk.run("job", "simulate", "recipe.yaml", *own, "--output", "json")
    here = desk.run("build", "recipe.yaml", *own, "--output", "json")

    assert job.status == 0, job.err + job.out
    assert here.status == 0, here.err
    keys = {row["name"]: row["key"] for row in here.json["stages"]}
    assert job.json["keys"] == keys
    digests = [row["manifest_digest"] for row in here.json["artifacts"]]
    assert [row["manifest_digest"] for row in job.json["artifacts"]] == digests


def test_wheels_come_by_a_channel_and_move_no_key(room: Path, tmp_path: Path) -> None:
    """Installed in the container; the artifact is that of a build here."""
    desk = Desk(room)
    name, data = tiny_wheel()
    (room / "wheels").mkdir()
    (room / "wheels" / name).write_bytes(data)
    own = ("--set", "job.wheels=./wheels", "--keep", str(tmp_path))

    job = desk.run("job", "simulate", "recipe.yaml", *own, "--output", "json")
    here = desk.run("build", "recipe.yaml", "--output", "json")

    assert job.status == 0, job.err + job.out
    assert job.json["keys"] == {r["name"]: r["key"] for r in here.json["stages"]}
    digests = [row["manifest_digest"] for row in here.json["artifacts"]]
    assert [row["manifest_digest"] for row in job.json["artifacts"]] == digests
    assert [*tmp_path.rglob(f"input/wheels/{name}")]


def test_a_job_without_network_makes_the_same(room: Path, server: str) -> None:
    """Results come by a channel and leave by an output; nothing else reaches it."""
    desk = Desk(room)
    isolated = ("--set", "job.network_isolation=true", "--s3", server)

    job = desk.run("job", "simulate", "recipe.yaml", *isolated, "--output", "json")
    here = desk.run("build", "recipe.yaml", "--output", "json")

    assert job.status == 0, job.err + job.out
    digests = [row["manifest_digest"] for row in here.json["artifacts"]]
    assert [row["manifest_digest"] for row in job.json["artifacts"]] == digests


def test_a_stopped_job_tells_so_and_goes_on(bench: Bench) -> None:
    """SIGTERM in a stage: status 130, the stage named; then only the rest is built."""
    plan = plan_of(bench)
    request = bench.request(plan)

    stopped = bench.run(request, fault=parse_fault("stop:checkpoint")).hosts[0]
    result = result_of(bench)
    leases = [json.loads(bench.read(key)) for key in bench.keys("leases")]
    again = bench.run(request).hosts[0]

    assert (stopped.status, stopped.exit_code) == ("Stopped", 130)
    assert stopped.message.startswith("error[job.stopped]: stopped during tiny/check")
    assert "\nhint: submit it again" in stopped.message
    assert (result.ok, result.exit_code, result.code) == (False, 130, "job.stopped")
    assert [lease for lease in leases if lease["holder"]] == []
    assert again.exit_code == 0, again.log.read_text()
    assert [*stopped.built, *again.built] == [
        stage.name for stage in plan.stages if stage.kind not in LOCAL
    ]


def test_a_killed_container_has_left_its_message(bench: Bench) -> None:
    """SIGKILL leaves no time: the stage was written down when it began."""
    plan = plan_of(bench)
    request = bench.request(plan, lease_seconds=3)

    killed = bench.run(request, fault=parse_fault("kill:quantize")).hosts[0]
    again = bench.run(request).hosts[0]

    assert killed.exit_code == 137
    assert killed.message.startswith("error[job.killed]: tiny/quantize: ")
    assert again.exit_code == 0, again.log.read_text()
    assert again.built[0] == "tiny/quantize"


def test_the_time_limit_ends_a_job_in_good_order(server: str, tmp_path: Path) -> None:
    """It says so, whoever notices first, and what to raise."""
    bench = Bench(url=server, root=tmp_path)
    bench.empty("store/")
    plan = bench.without_verify(bench.plan(make_matrix(tmp_path)))
    request = bench.request(plan)

    ended = bench.run(request, fault=Fault(kind="limit", seconds=5)).hosts[0]

    assert ended.exit_code == 130
    assert ended.message.startswith("error[job.time-limit]: the time limit of 5 s is")
    assert "raise `job.max_runtime_seconds` over 5" in ended.message


def test_a_volume_too_small_is_refused_with_numbers(bench: Bench) -> None:
    """Before the first stage: what is needed, what is free, what to ask for."""
    request = bench.request(plan_of(bench))

    ended = bench.run(request, fault=parse_fault("disk-full:1MiB")).hosts[0]

    assert ended.exit_code == 4
    assert ended.started == ()
    assert ended.message.startswith("error[job.disk-too-small]: this job needs ")
    assert "`job.volume_size_gb` by 1 GB" in ended.message
    assert result_of(bench).code == "job.disk-too-small"


def test_a_throttled_store_only_takes_longer(room: Path) -> None:
    """One request in five is refused; nothing is lost."""
    with s3_server(throttled=True) as url:
        bench = Bench(url=url, root=room)
        bench.client.create_bucket(Bucket=BUCKET)
        bench.empty("store/")  # servers of one process share their objects
        request = bench.request(plan_of(bench))

        ended = bench.run(request, fault=parse_fault("throttle")).hosts[0]

    assert ended.exit_code == 0, ended.log.read_text()


def test_a_token_that_expires_in_between_costs_nothing(room: Path) -> None:
    """Status 6 and why, in the message; with a fresh one it goes on."""
    with FaultyS3() as server:
        bench = Bench(url=server.url, root=room)
        bench.client.create_bucket(Bucket=BUCKET)
        bench.empty("store/")  # servers of one process share their objects
        request = bench.request(plan_of(bench), lease_seconds=3)
        server.rule(r"^PUT .*/actions/", "expired-token", times=9999)
        expired = bench.run(request).hosts[0]
        server.forget()
        again = bench.run(request).hosts[0]

    assert expired.exit_code == 6
    assert expired.message.startswith("error[remote.expired-token]: ")
    assert again.exit_code == 0, again.log.read_text()
    assert "tiny/package" in again.built


def test_other_tools_end_a_job_and_are_told(bench: Bench) -> None:
    """Every difference is in the message; the versions here are in the result."""
    plan = plan_of(bench)
    request = bench.request(plan)
    fake = bench.root / "fake"
    tool = next(iter(next(s for s in plan.stages if s.kind == "quantize").tools))
    info = fake / f"{tool}-0.0.1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Name: {tool}\nVersion: 0.0.1\n")

    ended = bench.run(request, environment={"PYTHONPATH": str(fake)}).hosts[0]

    assert ended.exit_code == 3
    assert ended.message.startswith("error[job.other-tools]: ")
    assert f"{tool} {plan.stages[1].tools[tool]} here 0.0.1" in ended.message
    assert result_of(bench).tools[tool] == "0.0.1"


def test_it_runs_where_no_namespace_may_be_made(bench: Bench) -> None:
    """A variable says where its folders are; the rest is the same."""
    request = bench.request(plan_of(bench))

    ended = bench.run(request, mounted=False).hosts[0]

    assert ended.exit_code == 0, ended.log.read_text()
    assert str(bench.root) in ended.log.read_text()


def test_a_training_job_has_other_folders(bench: Bench) -> None:
    """The same plan where Processing has no such instance."""
    plan = plan_of(bench)
    processing = bench.request(plan, kind="training", lease_seconds=3)
    source = processing["ProcessingInputs"][0]["S3Input"]
    request = {
        "TrainingJobName": "tiny-job",
        "AlgorithmSpecification": {
            "ContainerEntrypoint": ["bash", "/opt/ml/input/data/job/sagemaker_entry.sh"]
        },
        "InputDataConfig": [
            {
                "ChannelName": "job",
                "DataSource": {"S3DataSource": source},
            }
        ],
        "OutputDataConfig": {
            "S3OutputPath": f"{STORE}/out",
            "CompressionType": "NONE",
        },
        "ResourceConfig": {"InstanceCount": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }

    failed = bench.run(
        request, kind="training", fault=parse_fault("stop:quantize")
    ).hosts[0]
    ended = bench.run(request, kind="training").hosts[0]

    assert failed.message.startswith("error[job.stopped]: ")
    assert ended.exit_code == 0, ended.log.read_text()
    assert ended.message == ""
    base = f"{STORE}/out/tiny-job/output/data/report/algo-1.json"
    assert base in ended.outputs


def test_six_artifacts_over_three_hosts(server: str, tmp_path: Path) -> None:
    """Each stage is begun once, whoever begins it; each artifact is whole."""
    bench = Bench(url=server, root=tmp_path)
    bench.empty("store/")
    plan = bench.without_verify(bench.plan(make_matrix(tmp_path, SIX)))

    end = build(bench, plan, "whole", None, 0)

    assert end.status == "Completed", [h.log.read_text() for h in end.hosts]
    assert len(end.hosts) == NUM_HOSTS
    begun = Counter(stage for host in end.hosts for stage in host.started)
    assert set(begun.values()) == {1}
    assert check(bench, plan, end) == []
    assert sum(bool(host.started) for host in end.hosts) > 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 5.0])
def test_a_lost_host_costs_its_own_stage(
    server: str, tmp_path: Path, seconds: float
) -> None:
    """The others take it up; nothing else is begun again."""
    bench = Bench(url=server, root=tmp_path)
    bench.empty("store/")
    plan = bench.without_verify(bench.plan(make_matrix(tmp_path, SIX)))
    fault = Fault(kind="lost-host", seconds=seconds)

    end = build(bench, plan, f"lost-{int(seconds)}", fault, int(seconds))

    assert len(check(bench, plan, end)) <= 1


def test_it_leaves_nothing_running(bench: Bench) -> None:
    """A worker ends with the container's first process, namespace or not."""
    request = bench.request(plan_of(bench), lease_seconds=3)

    killed = bench.run(request, fault=parse_fault("kill:quantize"), mounted=False)

    assert killed.hosts[0].exit_code == 137
    scratch = str(bench.root / "hosts").encode()
    for _ in range(50):
        left = [pid for pid in processes() if scratch in command_line(pid)]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def processes() -> list[Path]:
    """Every process of this machine."""
    return [path for path in Path("/proc").iterdir() if path.name.isdecimal()]


def command_line(process: Path) -> bytes:
    """Its arguments; empty when it is gone."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
