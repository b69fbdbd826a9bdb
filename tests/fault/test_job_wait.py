"""Jobs from their submission to their end, over HTTP, with every way to end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

import stage_plans
from lmi_build import api, events
from lmi_build.errors import Interrupted, RemoteFailed, UsageInvalid
from lmi_build.execute.redact import Redactor
from lmi_build.jobs import service as aws
from lmi_build.jobs.isolation import bring_results
from lmi_build.jobs.logs import LogTail
from lmi_build.jobs.shared import SharedStore, open_shared
from lmi_build.jobs.submission import submission_from_json
from lmi_build.jobs.submit import Ground, submit
from lmi_build.jobs.wait import Outcome, Waiter
from lmi_build.jobs.watch import Merger
from publishing import QUICK
from running_jobs import Runner, submission
from sagemaker_server import SageMakerServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lmi_build.events import Event
    from lmi_build.jobs.submission import SubmittedJob
    from lmi_build.values.stage import Plan

PATIENCE = aws.Patience(
    attempts=2, timeout_seconds=5, poll_seconds=0.02, slowest_poll_seconds=0.1
)


@dataclass(kw_only=True)
class Desk:
    """Everything that one who submits has."""

    server: SageMakerServer
    service: aws.Service
    shared: SharedStore
    root: Path
    runner: Runner | None = None

    def ground(self, plan: Plan, *groups: Sequence[int], **more: Any) -> Ground:
        """The ground of a plan, with machines that run its jobs."""
        made = submission(plan, self.shared.uri, *groups, **more)
        self.runner = Runner(
            server=self.server,
            plan=plan,
            submission=made,
            root=self.root / "hosts",
            uri=self.shared.uri,
        )
        self.server.on_create = self.runner.start
        self.shared.place.create("inputs/00/job.json", b"{}")
        return Ground(submission=made, service=self.service, shared=self.shared)

    def wait(
        self, ground: Ground, *, sleep: Callable[[float], None] | None = None
    ) -> tuple[Outcome, list[Event]]:
        """Wait to the end; what was told."""
        told: list[Event] = []
        waiter = self.waiter(ground, told)
        if sleep is not None:
            waiter.sleep = sleep
        outcome = waiter.run()
        assert self.runner is not None
        self.runner.join()
        return outcome, told

    def waiter(self, ground: Ground, told: list[Event]) -> Waiter:
        """A waiter that tells a list."""
        merger = Merger(emit=told.append, redactor=Redactor(("top-secret",)))
        return Waiter(ground=ground, merger=merger, bring=self.bring)

    def bring(self, job: SubmittedJob, state: aws.JobState) -> None:
        """Give the shared store what a job without network left."""
        assert job.isolated
        settings = self.server.settings(self.root / "here")
        store = api.open_store(replace(settings, store=self.shared.uri))
        bring_results(job, state, shared=self.shared, store=store, settings=settings)
        store.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with SageMakerServer() as server:
        settings = server.settings(tmp_path)
        service = aws.connect(settings, patience=PATIENCE)
        uri = f"s3://{server.make_bucket()}/store"
        with open_shared(uri, settings, transfer=QUICK) as shared:
            yield Desk(server=server, service=service, shared=shared, root=tmp_path)
        service.close()


def names(told: list[Event], kind: type[Event]) -> list[str]:
    return [event.stage for event in told if isinstance(event, kind)]  # type: ignore[union-attr]


def end_of(told: list[Event]) -> tuple[bool, int, int]:
    last = told[-1]
    assert isinstance(last, events.BuildFinished)
    return last.ok, last.num_built, last.num_cached


@pytest.mark.parametrize("kind", ["processing", "training"])
def test_jobs_follow_each_other_and_look_like_one_build(desk: Desk, kind: str) -> None:
    ground = desk.ground(stage_plans.chain(), [0], [1, 2], kind=kind)
    placed = submit(ground)
    outcome, told = desk.wait(ground)
    stages = ["sample/fetch", "sample/quantize", "sample/compile"]

    assert [row.how for row in placed] == ["created", "waiting"]
    assert outcome.failure is None
    assert isinstance(told[0], events.PlanReady)
    assert list(told[0].stages) == stages
    assert names(told, events.StageFinished) == stages
    assert end_of(told) == (True, 3, 0)
    assert [r.name for row in outcome.jobs for r in row.results] == [
        "sample-a",
        "sample-b",
    ]
    assert desk.shared.missing(s.key for s in stage_plans.chain().stages) == []


def test_jobs_without_network_follow_each_other(desk: Desk) -> None:
    """Each gets what it needs by a manifest, and `wait` shares what it leaves."""
    ground = desk.ground(stage_plans.chain(), [0], [1, 2], isolated=True)
    submit(ground)
    outcome, _ = desk.wait(ground)
    assert desk.runner is not None

    assert outcome.failure is None
    assert [len(listed) for listed in desk.runner.listed] == [0, 2]
    assert desk.shared.missing(s.key for s in stage_plans.chain().stages) == []


def test_what_an_isolated_job_finished_stays_when_it_fails(desk: Desk) -> None:
    first = stage_plans.stage("fetch")
    bad = stage_plans.stage("quantize", "refuse", inputs={"model": first.key})
    ground = desk.ground(stage_plans.plan(first, bad), [0, 1], isolated=True)
    submit(ground)
    outcome, _ = desk.wait(ground)

    assert outcome.failure is not None
    assert outcome.failure.code == "source.test"
    assert desk.shared.missing([first.key, bad.key]) == [bad.key]


def test_other_lines_are_told_as_lines_without_secrets(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    assert desk.runner is not None
    desk.runner.before = ["token is top-secret", '{"event": "of another"}', "{"]
    submit(ground)
    _, told = desk.wait(ground)
    lines = [
        event.message
        for event in told
        if isinstance(event, events.StageNote) and event.code == "job.log"
    ]

    assert lines == ["token is [redacted]", '{"event": "of another"}', "{"]


def test_a_second_submit_attaches(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    submit(ground)
    again = submit(ground)
    desk.wait(ground)
    third = submit(ground)

    assert [row.how for row in again] == ["attached"]
    assert [row.how for row in third] == ["cached"]
    assert desk.server.asked("CreateProcessingJob") == 1


def test_a_job_that_somebody_creates_in_between_is_taken(desk: Desk) -> None:
    """Describe says no, create says yes: the answer of the race."""
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    submit(ground)
    desk.server.fault("DescribeProcessingJob", "ValidationException/absent")
    placed = submit(ground)
    desk.wait(ground)

    assert [row.how for row in placed] == ["attached"]
    assert len(desk.server.jobs) == 1


def test_results_that_are_there_need_no_job(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    submit(ground)
    desk.wait(ground)
    desk.server.jobs.clear()
    placed = submit(ground)
    outcome, _ = desk.wait(ground)

    assert [row.how for row in placed] == ["cached"]
    assert outcome.failure is None
    assert desk.server.jobs == {}


def test_no_more_jobs_than_allowed_run_at_once(desk: Desk) -> None:
    parts = [stage_plans.stage(kind, text=kind) for kind in ("a", "b", "c", "d")]
    ground = desk.ground(stage_plans.plan(*parts), [0], [1], [2], [3], max_jobs=2)
    placed = submit(ground)
    most = 0

    def count(_seconds: float) -> None:
        nonlocal most
        running = sum(job.ended is None for job in desk.server.jobs.values())
        most = max(most, running)

    outcome, _ = desk.wait(ground, sleep=count)

    assert [row.how for row in placed] == ["created", "created", "waiting", "waiting"]
    assert outcome.failure is None
    assert 1 <= most <= 2
    assert len(desk.server.jobs) == 4


def test_a_failed_stage_ends_with_the_jobs_own_code_and_lines(desk: Desk) -> None:
    first = stage_plans.stage("fetch")
    bad = stage_plans.stage("quantize", "refuse", inputs={"model": first.key})
    last = stage_plans.stage("compile", inputs={"model": bad.key})
    ground = desk.ground(stage_plans.plan(first, bad, last), [0], [1], [2])
    submit(ground)
    outcome, told = desk.wait(ground)
    failure = outcome.failure

    assert failure is not None
    assert (failure.exit_code, failure.code) == (1, "source.test")
    assert "sample-b (algo-1): bad file" in failure.message
    assert "| a line of the image" in failure.message
    assert "replace it" in failure.hints
    assert names(told, events.StageFailed) == ["sample/quantize"]
    assert set(desk.server.jobs) == {"sample-a", "sample-b"}
    assert end_of(told)[0] is False


def test_a_lost_host_is_named_by_sagemaker(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    assert desk.runner is not None
    desk.runner.die = {"sample-a"}
    submit(ground)
    outcome, _ = desk.wait(ground)
    failure = outcome.failure

    assert failure is not None
    assert (failure.exit_code, failure.code) == (6, "job.failed")
    assert "the host is lost" in failure.message
    assert "| Killed" in failure.message


def test_a_failed_job_is_tried_again_under_another_name(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0], [1, 2])
    assert desk.runner is not None
    desk.runner.die = {"sample-b"}
    submit(ground)
    failed, _ = desk.wait(ground)
    placed = submit(ground)
    outcome, _ = desk.wait(ground)

    assert failed.failure is not None
    assert [(row.how, row.name) for row in placed] == [
        ("cached", "sample-a"),
        ("created", "sample-b-try2"),
    ]
    assert "attempt sample-b is failed" in placed[1].note
    assert outcome.failure is None


def test_a_stopped_job_says_so(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    desk.server.on_create = None
    submit(ground)
    aws.stop(desk.service, "processing", "sample-a")
    outcome, _ = desk.wait(ground)

    assert outcome.failure is not None
    assert outcome.failure.code == "job.was-stopped"


def test_completed_without_results_is_no_success(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])

    def lie(job: Any) -> None:
        job.next = ["Completed"]

    desk.server.on_create = lie
    submit(ground)
    outcome, _ = desk.wait(ground)

    assert outcome.failure is not None
    assert outcome.failure.code == "job.incomplete"


def test_what_nobody_submitted_is_not_created(desk: Desk) -> None:
    """The plan, or the package, changed between `submit` and `wait`."""
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    desk.shared.place.remove("inputs/00/job.json")
    with pytest.raises(UsageInvalid) as error:
        desk.wait(ground)

    assert error.value.code == "job.not-submitted"
    assert desk.server.jobs == {}


def test_what_no_job_makes_is_named(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [1, 2])
    with pytest.raises(RemoteFailed) as error:
        desk.wait(ground)

    assert error.value.code == "job.inputs-missing"
    assert "1 results" in error.value.message
    assert desk.server.jobs == {}


def test_of_several_creations_none_is_left_when_one_is_refused(desk: Desk) -> None:
    parts = [stage_plans.stage(kind, text=kind) for kind in ("a", "b", "c")]
    ground = desk.ground(stage_plans.plan(*parts), [0], [1], [2])
    desk.server.on_create = None
    desk.server.fault("CreateProcessingJob", "ResourceLimitExceeded", skip=1)
    with pytest.raises(RemoteFailed) as error:
        submit(ground)

    assert (error.value.exit_code, error.value.code) == (6, "job.quota")
    assert "stopped what this call had created: sample-a" in error.value.message
    assert {name: job.status for name, job in desk.server.jobs.items()} == {
        "sample-a": "Stopping"
    }


def test_a_job_that_ran_before_is_not_stopped(desk: Desk) -> None:
    parts = [stage_plans.stage(kind, text=kind) for kind in ("a", "b", "c")]
    ground = desk.ground(stage_plans.plan(*parts), [0], [1], [2], max_jobs=1)
    desk.server.on_create = None
    submit(ground)
    more = replace(ground, submission=replace(ground.submission, max_jobs=3))
    desk.server.fault("CreateProcessingJob", "AccessDeniedException", skip=1)
    with pytest.raises(RemoteFailed):
        submit(more)

    assert {name: job.status for name, job in desk.server.jobs.items()} == {
        "sample-a": "InProgress",
        "sample-b": "Stopping",
    }


def test_a_token_that_expires_says_what_runs_and_how_to_stop_it(desk: Desk) -> None:
    parts = [stage_plans.stage(kind, text=kind) for kind in ("a", "b")]
    ground = desk.ground(stage_plans.plan(*parts), [0], [1])
    desk.server.on_create = None
    desk.server.fault("DescribeProcessingJob.*sample-b", "ExpiredTokenException")
    desk.server.fault("StopProcessingJob", "ExpiredTokenException", times=9)
    with pytest.raises(RemoteFailed) as error:
        submit(ground)

    assert error.value.code == "remote.expired-token"
    assert "still running: sample-a" in error.value.message
    assert error.value.hints[0] == "stop them: `lmi-build job cancel sample-a`"


def test_a_follower_that_is_refused_is_told_after_the_others_end(desk: Desk) -> None:
    other = stage_plans.stage("package", text="z", job={"sleep": 0.3})
    plan = stage_plans.plan(*stage_plans.chain().stages, other)
    ground = desk.ground(plan, [0], [3], [1, 2])
    submit(ground)
    desk.server.fault("CreateProcessingJob", "ResourceLimitExceeded")
    with pytest.raises(RemoteFailed) as error:
        desk.wait(ground)

    assert error.value.code == "job.quota"
    assert all(job.ended for job in desk.server.jobs.values())


def test_an_interrupt_leaves_the_jobs_and_says_how_to_go_on(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0], [1, 2])
    desk.server.on_create = None
    submit(ground)

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as error:
        desk.wait(ground, sleep=interrupt)

    assert error.value.exit_code == 130
    assert "the jobs go on: sample-a" in error.value.message
    assert "not yet created: sample-b" in error.value.message
    assert "lmi-build job cancel sample-a" in error.value.hints[1]
    assert desk.server.asked("StopProcessingJob") == 0


def test_a_token_that_expires_while_waiting_leaves_the_jobs(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    desk.server.on_create = None
    submit(ground)

    def expire(_seconds: float) -> None:
        desk.server.fault("Describe", "ExpiredTokenException", times=9)

    with pytest.raises(RemoteFailed) as error:
        desk.wait(ground, sleep=expire)

    assert (error.value.exit_code, error.value.code) == (6, "remote.expired-token")
    assert "the jobs go on: sample-a" in error.value.message
    assert desk.server.jobs["sample-a"].status == "InProgress"


def test_logs_that_may_not_be_read_stop_nobody(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    submit(ground)
    waiter = desk.waiter(ground, [])
    refused = RemoteFailed("no", code="job.denied")

    def refuse(_tail: LogTail) -> list[str]:
        raise refused

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogTail, "_streams", refuse)
        outcome = waiter.run()

    assert outcome.failure is None
    assert outcome.jobs[0].tail is not None
    assert outcome.jobs[0].tail.refused is refused


def test_lines_come_once_although_reading_them_fails(desk: Desk) -> None:
    """Throttled between two hosts' streams: what was read stays, the rest follows."""
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    desk.server.on_create = None
    submit(ground)
    job = desk.server.jobs["sample-a"]
    desk.server.put_log(job, "algo-1", ["one", "two"])
    desk.server.put_log(job, "algo-2", ["three"])
    tail = LogTail(desk.service, "processing", "sample-a")
    real, calls = tail._read, 0

    def fail_second(stream: str) -> Iterator[Any]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RemoteFailed("Rate exceeded", code="remote.throttled")
        return real(stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail, "_read", fail_second)
        first = [line.text for line in tail.poll()]
        second = [line.text for line in tail.poll()]

    assert (first, second) == (["one", "two"], ["three"])


def test_throttling_while_waiting_is_waited_out(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    submit(ground)
    desk.server.fault("DescribeProcessingJob", "ThrottlingException")
    outcome, _ = desk.wait(ground)

    assert outcome.failure is None


def test_a_job_name_leads_to_its_submission(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0], [1, 2])
    submit(ground)
    desk.wait(ground)
    stored = desk.shared.place.read("jobs/sample-b/submission.json")

    assert stored is not None
    assert submission_from_json(stored.data) == ground.submission


def test_nothing_secret_is_sent_to_sagemaker(desk: Desk) -> None:
    ground = desk.ground(stage_plans.chain(), [0, 1, 2])
    submit(ground)
    desk.wait(ground)
    said = "\n".join(desk.server.bodies)

    assert "wJalrXUtnFEMI" not in said
    assert "AKIDTEST" not in said
