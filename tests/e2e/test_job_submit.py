"""Jobs by commands, on a server that really runs each container's own script."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from desk import Desk, Done
from lmi_build.jobs.simulation.job import simulate_job
from make_tiny_model import make_tiny_model
from sagemaker_server import KEYS, REGION, SageMakerServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sagemaker_server import Job

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize: {method: rtn, bits: 8, group_size: 32}
bounds: {max_input_len: 32, max_output_len: 8, max_batch_size: 2}
compile: {backend: onnxruntime}
verify: {prompts: ["hello"], max_new_tokens: 4, num_samples: 2, max_seq_len: 32}
publish: {to: s3://BUCKET/models}
job:
  store: s3://BUCKET/store
  role: arn:aws:iam::123456789012:role/jobs
  image: 123456789012.dkr.ecr.eu-west-1.amazonaws.com/tools:1
  instance: ml.m5.xlarge
"""
SECRET = "hf_abcdefghijklmnopqrstuvwxyz0123"


@dataclass(kw_only=True)
class Machines:
    """What SageMaker's machines do: the container's own script, on this one."""

    server: SageMakerServer
    root: Path
    path: str
    threads: list[threading.Thread] = field(default_factory=list)
    held: bool = False

    def start(self, job: Job) -> None:
        """Run a job, unless they are held."""
        if not self.held:
            self.go(job)

    def go(self, job: Job) -> None:
        """Run a job beside the commands."""
        thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self.threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait for every job."""
        for thread in self.threads:
            thread.join(timeout=120)

    def _run(self, job: Job) -> None:
        client = self.server.client("s3")
        end = simulate_job(
            job.kind.lower(),
            job.request,
            client=client,
            environment={**KEYS, "AWS_REGION": REGION, "PATH": self.path},
            scratch=self.root / job.name,
            mounted=False,
        )
        for host in end.hosts:
            self.server.put_log(job, host.host, host.log.read_text().splitlines())
            job.told["ExitMessage"] = host.message
        client.close()
        job.next = [end.status]


@dataclass(kw_only=True)
class Office:
    """A desk with a way to SageMaker."""

    desk: Desk
    server: SageMakerServer
    machines: Machines
    bucket: str

    def run(self, *arguments: str) -> Done:
        """A command."""
        return self.desk.run(*arguments)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny_model(folder)
    return folder


@pytest.fixture
def office(tmp_path: Path, model: Path) -> Iterator[Office]:
    root = tmp_path / "desk"
    root.mkdir()
    (root / "model").symlink_to(model)
    with SageMakerServer() as server:
        bucket = server.make_bucket()
        (root / "recipe.yaml").write_text(RECIPE.replace("BUCKET", bucket))
        variables = {
            **KEYS,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": server.url,
            # The jobs are told of this one.
            "AWS_ENDPOINT_URL_S3": server.url,
            "HF_TOKEN": SECRET,
        }
        desk = Desk(root, variables)
        path = f"{sys.exec_prefix}/bin:{desk.environment['PATH']}"
        machines = Machines(server=server, root=tmp_path / "hosts", path=path)
        server.on_create = machines.start
        yield Office(desk=desk, server=server, machines=machines, bucket=bucket)
        machines.join()


def keys_in(office: Office, prefix: str) -> list[str]:
    client = office.server.client("s3")
    found = client.list_objects_v2(Bucket=office.bucket, Prefix=prefix)
    client.close()
    return [row["Key"] for row in found.get("Contents", ())]


@pytest.mark.e2e
def test_a_recipe_goes_through_jobs_to_its_artifact(office: Office) -> None:
    """Submit, wait, status, list, logs, and submit again, as a user types them."""
    submitted = office.run("job", "submit", "recipe.yaml", "--output", "json")
    assert submitted.status == 0, submitted.err
    rows = submitted.json["jobs"]
    name = rows[0]["name"]

    waited = office.run("job", "wait", name, "--output", "json")
    assert waited.status == 0, waited.err
    (artifact,) = waited.json["artifacts"]
    local = office.run("build", "recipe.yaml", "--no-publish", "--output", "json")
    assert local.status == 0, local.err

    assert [row["how"] for row in rows] == ["created"]
    assert rows[0]["url"].endswith(f"#/processing-jobs/{name}")
    # The same keys, and the same artifact, without what the jobs made at hand.
    assert {s["key"] for s in rows[0]["stages"]} <= {
        s["key"] for s in local.json["stages"]
    }
    assert artifact["uri"].startswith(f"s3://{office.bucket}/models/")
    assert local.json["artifacts"][0]["manifest_digest"] == artifact["manifest_digest"]

    office.server.forget()
    again = office.run("job", "submit", "recipe.yaml", "--output", "json")
    assert [row["how"] for row in again.json["jobs"]] == ["cached"]
    assert again.json["sent_bytes"] == 0
    assert sum(n for path, n in office.server.sent.items() if "/store/" in path) == 0

    status = office.run("job", "status", name, "--output", "json").json
    assert {stage["state"] for stage in status[0]["stages"]} == {"built"}
    assert status[0]["usd"] > 0
    listed = office.run("job", "list", "--output", "json").json
    assert [row["name"] for row in listed] == [name]
    logs = office.run("job", "logs", name)
    assert '{"event"' in logs.out
    said = "\n".join(office.server.bodies) + logs.out + submitted.out + waited.out
    assert SECRET not in said
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in said


@pytest.mark.e2e
def test_a_job_without_network_leaves_its_results_for_all(office: Office) -> None:
    """Its store comes by a manifest and leaves as an output; `wait` shares it."""
    isolated = ("--set", "job.network_isolation=true")
    done = office.run(
        "job", "submit", "recipe.yaml", "--wait", *isolated, "--output", "json"
    )
    assert done.status == 0, done.err
    (job,) = done.json["jobs"]
    states = office.run("job", "status", job["name"], "--output", "json").json
    manifests = [k for k in keys_in(office, "store/jobs/") if k.endswith("manifest")]

    assert job["results"][0]["ok"] is True
    assert {stage["state"] for stage in states[0]["stages"]} == {"built"}
    assert manifests == [f"store/jobs/{job['name']}/store.manifest"]


@pytest.mark.e2e
def test_submit_and_wait_shows_one_builds_events(office: Office) -> None:
    done = office.run("job", "submit", "recipe.yaml", "--wait", "--output", "jsonl")
    assert done.status == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    kinds = [line["event"] for line in lines]
    finished = [line["stage"] for line in lines if line["event"] == "stage-finished"]

    assert kinds[-1] == "build-finished"
    assert lines[-1]["ok"] is True
    assert {name.partition("/")[2] for name in finished} >= {
        "fetch",
        "quantize",
        "compile",
        "package",
        "verify",
    }


@pytest.mark.e2e
def test_a_failing_job_gives_its_own_code(office: Office) -> None:
    done = office.run(
        "job",
        "submit",
        "recipe.yaml",
        "--wait",
        "--set",
        "verify.gates.max_mean_kl=1e-12",
    )

    assert done.status == 5, done.err
    assert "error[verify." in done.err
    assert "its last lines" in done.err


def test_cancel_stops_and_says_what_is_kept(office: Office) -> None:
    office.machines.held = True
    submitted = office.run("job", "submit", "recipe.yaml", "--output", "json")
    assert submitted.status == 0, submitted.err
    name = submitted.json["jobs"][0]["name"]
    done = office.run("job", "cancel", "recipe.yaml", "--output", "json")
    assert done.status == 0, done.err
    (row,) = done.json
    again = office.run("job", "cancel", name)
    tried = office.run("job", "submit", "recipe.yaml", "--output", "json")

    assert (row["name"], row["status"], row["stopped"]) == (name, "Stopped", True)
    assert keys_in(office, "store/leases/") == []
    assert "was Stopped already" in again.err
    assert tried.json["jobs"][0]["name"] == f"{name}-try2"


def test_what_is_wrong_ends_before_anything_runs(office: Office) -> None:
    unknown = office.run("job", "wait", "nobody-knows")
    office.server.fault("CreateProcessingJob", "ResourceLimitExceeded", times=9)
    quota = office.run("job", "submit", "recipe.yaml")
    offline = office.run("job", "list", "--offline")

    assert (unknown.status, "error[job.unknown]" in unknown.err) == (2, True)
    assert (quota.status, "error[job.quota]" in quota.err) == (6, True)
    assert "servicequotas" in quota.err
    assert (offline.status, "error[remote.offline]" in offline.err) == (6, True)
    assert office.server.jobs == {}


def test_the_tables_are_readable(office: Office) -> None:
    office.machines.held = True
    submitted = office.run("job", "submit", "recipe.yaml")
    status = office.run("job", "status", "recipe.yaml")
    listed = office.run("job", "list")

    assert "created" in submitted.err
    assert submitted.out.startswith(f"https://{REGION}.console.aws.amazon.com/")
    assert "InProgress" in status.out
    assert "tiny/quantize" in status.out
    assert "building" in status.out
    assert "ml.m5.xlarge" in listed.out
    assert "USD" in listed.out
