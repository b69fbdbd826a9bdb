"""Jobs found by name, stopped, cleared, and those that have no network."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import stage_plans
from lmi_build import api
from lmi_build.errors import RemoteFailed, UsageInvalid
from lmi_build.execute.executor import execute
from lmi_build.jobs import service as aws
from lmi_build.jobs.cancel import cancel, release
from lmi_build.jobs.ending import failure_of
from lmi_build.jobs.find import submission_of_name
from lmi_build.jobs.isolation import bring_results, moved_request, store_manifest
from lmi_build.jobs.role import role_arn
from lmi_build.jobs.shared import SharedStore, open_shared
from lmi_build.jobs.status import list_jobs, status
from lmi_build.jobs.submit import Ground, submit
from lmi_build.plan.saved import plan_to_json
from lmi_build.store.lease import lease_key
from lmi_build.values.job import (
    JobDocument,
    JobResult,
    job_to_json,
    result_to_json,
)
from publishing import QUICK
from running_jobs import submission
from sagemaker_server import REGION, SageMakerServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.values.settings import Settings

PATIENCE = aws.Patience(
    attempts=2, timeout_seconds=5, poll_seconds=0.01, slowest_poll_seconds=0.05
)


@pytest.fixture
def server() -> Iterator[SageMakerServer]:
    with SageMakerServer() as running:
        yield running


@pytest.fixture
def settings(server: SageMakerServer, tmp_path: Path) -> Settings:
    here = stage_plans.settings(tmp_path / "here")
    return replace(here, secrets=server.settings(tmp_path).secrets)


@pytest.fixture
def service(settings: Settings) -> Iterator[aws.Service]:
    found = aws.connect(settings, patience=PATIENCE)
    yield found
    found.close()


@pytest.fixture
def shared(server: SageMakerServer, settings: Settings) -> Iterator[SharedStore]:
    uri = f"s3://{server.make_bucket()}/store"
    with open_shared(uri, settings, transfer=QUICK) as found:
        yield found


@pytest.fixture
def ground(service: aws.Service, shared: SharedStore) -> Ground:
    made = submission(stage_plans.chain(), shared.uri, [0], [1, 2])
    shared.place.create("inputs/00/job.json", b"{}")
    return Ground(submission=made, service=service, shared=shared)


def never(_seconds: float) -> None:
    """Sleep as long as a test can."""


def test_cancel_stops_waits_and_clears(ground: Ground, shared: SharedStore) -> None:
    submit(ground)
    first, second = ground.submission.jobs
    key = first.keys[0]
    # What a host that was killed leaves: half-done work, and a claim given back.
    shared.place.create(f"state/{key.removeprefix('sha256:')}/index.json", b"{}")
    shared.place.create(lease_key(key), b'{"schema": 1, "holder": "", "seconds": 60}')
    rows = cancel(ground, [(first, first.name), (second, second.name)], sleep=never)

    assert [(row.name, row.status, row.stopped) for row in rows] == [
        ("sample-a", "Stopped", True),
        ("sample-b", "not created", False),
    ]
    assert rows[0].leases == 1
    assert rows[0].with_state == ("sample/fetch",)
    assert shared.place.listing("leases/") == {}
    assert len(shared.place.listing("state/")) == 1


def test_cancel_again_changes_nothing(ground: Ground, server: SageMakerServer) -> None:
    submit(ground)
    job = ground.submission.jobs[0]
    cancel(ground, [(job, job.name)], sleep=never)
    (row,) = cancel(ground, [(job, job.name)], sleep=never)

    assert (row.status, row.stopped, row.leases) == ("Stopped", False, 0)
    assert server.asked("StopProcessingJob") == 1


def test_a_job_that_does_not_stop_is_named(
    ground: Ground, server: SageMakerServer
) -> None:
    submit(ground)
    server.jobs["sample-a"].next = ["Stopping"] * 1_000_000
    job = ground.submission.jobs[0]
    slow = replace(PATIENCE, poll_seconds=50.0, slowest_poll_seconds=200.0)
    far = replace(ground, service=replace(ground.service, patience=slow))

    def still(_seconds: float) -> None:
        server.jobs["sample-a"].next = ["Stopping"]

    with pytest.raises(RemoteFailed) as error:
        cancel(far, [(job, job.name)], sleep=still)

    assert error.value.code == "job.does-not-stop"


def test_a_claim_that_is_renewed_stays(shared: SharedStore) -> None:
    """It is another build's; a minute of looking shows it beat."""
    key = stage_plans.chain().stages[0].key
    document = {"schema": 1, "holder": "other/1", "beat": 0, "seconds": 60}
    shared.place.create(lease_key(key), json.dumps(document).encode())

    def beat(_seconds: float) -> None:
        there = shared.place.read(lease_key(key))
        assert there is not None
        document["beat"] = int(str(document["beat"])) + 1
        data = json.dumps(document).encode()
        assert shared.place.swap(lease_key(key), data, tag=there.tag)

    assert release(shared, key, beat) is False
    assert len(shared.place.listing("leases/")) == 1


def test_status_tells_stages_from_the_store(
    ground: Ground, shared: SharedStore, settings: Settings
) -> None:
    submit(ground)
    plan = stage_plans.chain()
    build(plan, 1, replace(settings, store=shared.uri))
    rows = status(ground)
    states = {stage["name"]: stage["state"] for row in rows for stage in row.stages}

    assert states == {
        "sample/fetch": "built",
        "sample/quantize": "open",
        "sample/compile": "open",
    }
    assert [row.status for row in rows] == ["InProgress", "not created"]
    assert rows[0].usd is not None
    assert rows[0].usd >= 0.0
    assert "us-east-1" in rows[0].price_source
    assert rows[1].after == ("sample-a",)


def build(plan: Any, count: int, settings: Settings) -> None:
    """Build the first stages into the store of these settings."""
    store = api.open_store(settings)
    execute(
        replace(plan, stages=plan.stages[:count], artifacts=()),
        store=store,
        settings=settings,
        emit=lambda _event: None,
    )
    store.close()


def test_list_shows_ours_and_no_other(
    ground: Ground, service: aws.Service, shared: SharedStore
) -> None:
    submit(ground)
    foreign = {
        **ground.submission.jobs[0].request,
        "ProcessingJobName": "foreign",
        "ProcessingInputs": [],
    }
    aws.create(service, "processing", foreign)

    def listed(**wish: Any) -> list[str]:
        wanted = {"name_contains": "", "store": "", "limit": 10, **wish}
        return [row.name for row in list_jobs(service, **wanted)]

    assert listed() == ["sample-a"]
    assert listed(store=shared.uri) == ["sample-a"]
    assert listed(store="s3://elsewhere/store") == []
    assert listed(name_contains="b-") == []


def test_a_name_leads_to_its_submission(
    ground: Ground, service: aws.Service, settings: Settings
) -> None:
    submit(ground)

    assert submission_of_name(service, "sample-a", settings) == ground.submission


def test_a_rendered_job_that_others_created_stands_alone(
    ground: Ground, service: aws.Service, shared: SharedStore, settings: Settings
) -> None:
    """`job render` and one call of boto3 are enough."""
    plan, job = stage_plans.chain(), ground.submission.jobs[1]
    told = JobDocument(
        name=job.name, kind=job.kind, stages=job.keys, store=shared.uri, wheel="x.whl"
    )
    base = "inputs/00/"
    shared.place.remove(base + "job.json")
    shared.place.create(base + "job.json", json.dumps(job_to_json(told)).encode())
    shared.place.create(base + "plan.json", json.dumps(plan_to_json(plan)).encode())
    aws.create(service, "processing", job.request)
    found = submission_of_name(service, job.name, settings)

    assert found.store == shared.uri
    assert [(j.name, j.keys, j.inputs) for j in found.jobs] == [
        (job.name, job.keys, job.inputs)
    ]


@pytest.mark.parametrize("name", ["nobody", "foreign"])
def test_a_name_of_nobody_is_refused(
    ground: Ground, service: aws.Service, settings: Settings, name: str
) -> None:
    foreign = {
        **ground.submission.jobs[0].request,
        "ProcessingJobName": "foreign",
        "ProcessingInputs": [],
    }
    aws.create(service, "processing", foreign)
    with pytest.raises(UsageInvalid) as error:
        submission_of_name(service, name, settings)

    assert error.value.code == "job.unknown"


def test_results_are_the_hosts_own_each_once(shared: SharedStore) -> None:
    """SageMaker uploads the output `report` beside them, with logs in folders."""

    def put(key: str, host: str, message: str) -> None:
        result = JobResult(name="n", host=host, ok=True, exit_code=0, message=message)
        data = json.dumps(result_to_json(result)).encode()
        assert shared.place.create(f"jobs/n/{key}", data)

    put("algo-1.json", "algo-1", "own")
    put("report/algo-1.json", "algo-1", "uploaded")
    put("report/algo-2.json", "algo-2", "uploaded")
    put("report/algo-1/builds/x/algo-3.json", "algo-3", "a log")
    assert shared.place.create("jobs/n/submission.json", b"{}")
    found = shared.results("n")

    assert [(r.host, r.message) for r in found] == [
        ("algo-1", "own"),
        ("algo-2", "uploaded"),
    ]


# -- jobs without a network -----------------------------------------------------------


def test_the_manifest_lists_records_and_blobs_below_the_store(
    shared: SharedStore, settings: Settings
) -> None:
    plan = stage_plans.chain()
    build(plan, 2, replace(settings, store=shared.uri))
    rows = json.loads(store_manifest(shared, [plan.stages[0].key]))
    names = shared.place.listing("")

    assert rows[0] == {"prefix": f"{shared.uri}/"}
    assert len(rows) == 3
    assert set(rows[1:]) <= set(names)
    assert {row.partition("/")[0] for row in rows[1:]} == {"actions", "blobs"}


def test_an_attempt_has_a_folder_of_its_own(ground: Ground) -> None:
    job = ground.submission.jobs[0]
    moved = moved_request(job, "sample-a-try2", ground.submission.store)
    text = json.dumps(moved)

    assert f"{ground.submission.store}/jobs/sample-a-try2/report" in text
    assert f"{ground.submission.store}/jobs/sample-a/" not in text
    assert f"{ground.submission.store}/inputs/00/" in text
    assert moved_request(job, job.name, ground.submission.store) == job.request


def upload_plainly(server: SageMakerServer, shared: SharedStore, prefix: str) -> None:
    """Leave objects as SageMaker does: without metadata of ours."""
    client, bucket = server.client("s3"), shared.uri.split("/")[2]
    for row in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        body = client.get_object(Bucket=bucket, Key=row["Key"])["Body"].read()
        client.put_object(Bucket=bucket, Key=row["Key"], Body=body)
    client.close()


@pytest.mark.parametrize("below", ["", "output/data/store/"])
def test_what_an_isolated_job_leaves_is_shared(
    ground: Ground,
    shared: SharedStore,
    settings: Settings,
    server: SageMakerServer,
    below: str,
) -> None:
    """Its output has the store's layout; processing and training differ in where."""
    plan = stage_plans.chain()
    output = f"{shared.uri}/jobs/sample-b/store"
    left = replace(
        settings, cache_dir=settings.cache_dir / "host", store=f"{output}/{below}"
    )
    build(plan, 3, left)
    upload_plainly(server, shared, "store/jobs/sample-b/store/")
    job = ground.submission.jobs[1]
    state = aws.JobState(
        name=job.name,
        kind=job.kind,
        arn="",
        status="Completed",
        outputs={"store": output, "report": f"{shared.uri}/jobs/sample-b"},
    )
    store = api.open_store(replace(settings, store=shared.uri))
    found = bring_results(job, state, shared=shared, store=store, settings=settings)
    store.close()

    assert set(found) == set(job.keys)
    assert shared.missing(job.keys) == []


def test_a_damaged_output_is_not_shared(
    ground: Ground, shared: SharedStore, settings: Settings, server: SageMakerServer
) -> None:
    plan = stage_plans.chain()
    output = f"{shared.uri}/jobs/sample-b/store"
    build(plan, 3, replace(settings, cache_dir=settings.cache_dir / "h", store=output))
    client, bucket = server.client("s3"), shared.uri.split("/")[2]
    prefix = "store/jobs/sample-b/store/blobs/"
    for row in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        client.put_object(Bucket=bucket, Key=row["Key"], Body=b"?" * row["Size"])
    client.close()
    job = ground.submission.jobs[1]
    state = aws.JobState(
        name=job.name,
        kind=job.kind,
        arn="",
        status="Completed",
        outputs={"store": output},
    )
    store = api.open_store(replace(settings, store=shared.uri))
    with pytest.raises(RemoteFailed) as error:
        bring_results(job, state, shared=shared, store=store, settings=settings)
    store.close()

    assert error.value.code == "store.remote-damaged"
    assert set(shared.missing(job.keys)) == set(job.keys)


# -- how jobs end ---------------------------------------------------------------------


def ended(**fields: Any) -> aws.JobState:
    told = {"name": "n", "kind": "processing", "arn": "", "status": "Failed", **fields}
    return aws.JobState(**told)


@pytest.mark.parametrize(
    ("exit_code", "code"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (130, 130), (137, 1)],
)
def test_a_jobs_own_exit_code_is_ours(exit_code: int, code: int) -> None:
    result = JobResult(
        name="n", host="algo-1", ok=False, exit_code=exit_code, code="a.b", message="m"
    )
    failure = failure_of(ended(), (result,), missing=1)

    assert failure is not None
    assert (failure.exit_code, failure.code) == (code, "a.b")


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("CapacityError: Unable to provision requested ML compute capacity.", "free"),
        ("ClientError: ImagePullBackOff", "pull the image"),
        ("AccessDenied when calling S3", "--policy"),
        ("OSError: No space left on device", "volume_size_gb"),
    ],
)
def test_sagemakers_reason_has_a_way_out(reason: str, hint: str) -> None:
    failure = failure_of(ended(failure_reason=reason), (), missing=1)

    assert failure is not None
    assert reason in failure.message
    assert hint in failure.hints[0]


def test_a_failed_host_counts_although_the_job_completed() -> None:
    good = JobResult(name="n", host="algo-1", ok=True, exit_code=0)
    bad = JobResult(name="n", host="algo-2", ok=False, exit_code=1, message="lost")
    done = ended(status="Completed")

    assert failure_of(done, (good, bad), missing=0) is None
    assert failure_of(done, (good, bad), missing=1) is not None
    assert failure_of(ended(), (good,), missing=0) is not None


# -- roles ----------------------------------------------------------------------------


def test_a_roles_name_is_made_whole(
    server: SageMakerServer, settings: Settings
) -> None:
    iam = server.client("iam")
    arn = iam.create_role(
        RoleName="jobs", AssumeRolePolicyDocument="{}", Path="/teams/ml/"
    )["Role"]["Arn"]
    found = role_arn("jobs", settings, region=REGION)
    iam.delete_role(RoleName="jobs")
    iam.close()

    assert found == arn
    assert role_arn(arn, settings, region=REGION) == arn
    with pytest.raises(RemoteFailed):
        role_arn("jobs", settings, region=REGION)
