"""Jobs that the test server really runs: our executor over the shared store."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import stage_plans
from lmi_build import api, events
from lmi_build.errors import LmiBuildError
from lmi_build.execute.executor import execute
from lmi_build.jobs.submission import StageRef, Submission, SubmittedJob
from lmi_build.values.job import JobResult, result_to_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmi_build.digest import Digest, JSONValue
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan
    from sagemaker_server import Job, SageMakerServer


@dataclass(kw_only=True)
class Runner:
    """
    What stands for SageMaker's machines.

    Args:
        server: Told of what the jobs do.
        plan: Whose stages they build.
        submission: Who builds which.
        root: For the hosts' own disks.
        uri: Of the shared store.
        before: Lines that a container prints first.
        die: Names of jobs that end without a word.
        threads: Of jobs that were started.
        started: Their names.
        listed: What their manifests list, where they have no network.
    """

    server: SageMakerServer
    plan: Plan
    submission: Submission
    root: Path
    uri: str
    before: Sequence[str] = ("a line of the image",)
    die: set[str] = field(default_factory=set)
    threads: list[threading.Thread] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    listed: list[list[str]] = field(default_factory=list)

    def start(self, job: Job) -> None:
        """Run a job beside the test."""
        self.started.append(job.name)
        thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self.threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait for every job that was started."""
        for thread in self.threads:
            thread.join(timeout=60)

    def settings(self, name: str) -> Settings:
        """A host's environment."""
        here = stage_plans.settings(self.root / name)
        there = self.server.settings(self.root)
        return replace(here, store=self.uri, secrets=there.secrets)

    def _run(self, job: Job) -> None:
        planned = self.submission.job(job.name)
        assert planned is not None
        if job.name in self.die:
            self.server.put_log(job, "algo-1", ["about to die", "Killed"])
            job.told["FailureReason"] = "InternalServerError: the host is lost"
            job.next = ["Failed"]
            return
        settings = self.settings(job.name)
        if planned.isolated:
            settings = self._isolated(planned, job, settings)
        lines = list(self.before)
        stages = tuple(s for s in self.plan.stages if s.key in planned.keys)
        result = self._build(job.name, stages, settings, lines)
        store: Any = api.open_store(replace(settings, store=self.uri))
        key = f"jobs/{job.name}/algo-1.json"
        store.far.remote.create(key, json.dumps(result_to_json(result)).encode())
        store.close()
        self.server.put_log(job, "algo-1", lines)
        if job.kind == "Processing":
            job.told["ExitMessage"] = result.message
        elif not result.ok:
            job.told["FailureReason"] = f"AlgorithmError: {result.message}"
        job.next = ["InProgress", "Completed" if result.ok else "Failed"]

    def _isolated(
        self, planned: SubmittedJob, job: Job, settings: Settings
    ) -> Settings:
        """Take in what the manifest lists, and build into the job's own output."""
        store: Any = api.open_store(settings)
        manifest = store.far.remote.read(f"jobs/{job.name}/store.manifest")
        listed = json.loads(manifest.data) if manifest else []
        self.listed.append(listed[1:])
        for key in planned.inputs:
            assert f"actions/{key[7:9]}/{key[7:]}.json" in listed
            store.bring([store.lookup(key)])
        store.close()
        return replace(settings, store=f"{self.uri}/jobs/{job.name}/store")

    def _build(
        self, name: str, stages: Any, settings: Settings, lines: list[str]
    ) -> JobResult:
        store = api.open_store(settings)
        plan = replace(self.plan, stages=stages, artifacts=())
        try:
            done = execute(
                plan,
                store=store,
                settings=settings,
                emit=lambda event: lines.append(events.to_json(event)),
            )
        except LmiBuildError as error:
            return JobResult(
                name=name,
                host="algo-1",
                ok=False,
                exit_code=error.exit_code,
                code=error.code,
                message=error.message,
                hints=error.hints,
            )
        finally:
            store.close()
        rows: tuple[dict[str, JSONValue], ...] = tuple(
            {
                "name": row.name,
                "key": row.result.key,
                "cached": row.cached,
                "seconds": row.result.measure.seconds,
                "out_bytes": row.result.out_bytes,
            }
            for row in done.rows
        )
        return JobResult(
            name=name, host="algo-1", ok=True, exit_code=0, message="ok", stages=rows
        )


def submission(
    plan: Plan,
    uri: str,
    *groups: Sequence[int],
    kind: str = "processing",
    isolated: bool = False,
    **more: Any,
) -> Submission:
    """
    One job for each group of stages of a plan, by their places in it.

    Args:
        plan: Whose stages.
        uri: Of the shared store.
        groups: Places of stages.
        kind: Of the jobs.
        isolated: Whether they have no network.
        more: Fields of the submission.
    """
    maker: dict[Digest, str] = {}
    jobs: list[SubmittedJob] = []
    for number, group in enumerate(groups):
        name = f"{plan.recipe}-{'abcdef'[number]}"
        stages = [plan.stages[place] for place in group]
        built = {stage.key for stage in stages}
        inputs = tuple(
            dict.fromkeys(
                key
                for stage in stages
                for key in stage.inputs.values()
                if key not in built
            )
        )
        made = request if kind == "processing" else training_request
        jobs.append(
            SubmittedJob(
                name=name,
                kind=kind,
                request=made(name, uri),
                isolated=isolated,
                stages=tuple(StageRef(name=s.name, key=s.key) for s in stages),
                inputs=inputs,
                after=tuple(dict.fromkeys(maker[k] for k in inputs if k in maker)),
                instance="ml.m5.xlarge",
            )
        )
        maker |= dict.fromkeys(built, name)
    return Submission(
        recipe=plan.recipe, store=uri, region="eu-west-1", jobs=tuple(jobs), **more
    )


def request(name: str, uri: str) -> dict[str, Any]:
    """A request of boto3's form."""
    return {
        "ProcessingJobName": name,
        "RoleArn": "arn:aws:iam::123456789012:role/jobs",
        "AppSpecification": {"ImageUri": "123456789012.dkr.ecr.eu-west-1/x:1"},
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": 1,
                "InstanceType": "ml.m5.xlarge",
                "VolumeSizeInGB": 30,
            }
        },
        "ProcessingInputs": [
            {
                "InputName": "job",
                "S3Input": {"S3Uri": f"{uri}/inputs/00/", "S3DataType": "S3Prefix"},
            }
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": output,
                    "S3Output": {
                        "S3Uri": f"{uri}/jobs/{name}/{output}",
                        "LocalPath": f"/opt/ml/processing/output/{output}",
                        "S3UploadMode": "EndOfJob",
                    },
                }
                for output in ("report", "store")
            ]
        },
    }


def training_request(name: str, uri: str) -> dict[str, Any]:
    """The same of a training job."""
    return {
        "TrainingJobName": name,
        "RoleArn": "arn:aws:iam::123456789012:role/jobs",
        "AlgorithmSpecification": {
            "TrainingImage": "123456789012.dkr.ecr.eu-west-1/x:1",
            "TrainingInputMode": "File",
        },
        "InputDataConfig": [
            {
                "ChannelName": "job",
                "DataSource": {
                    "S3DataSource": {
                        "S3Uri": f"{uri}/inputs/00/",
                        "S3DataType": "S3Prefix",
                    }
                },
            }
        ],
        "OutputDataConfig": {"S3OutputPath": f"{uri}/jobs/{name}/output"},
        "ResourceConfig": {
            "InstanceType": "ml.trn1.2xlarge",
            "InstanceCount": 1,
            "VolumeSizeInGB": 30,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }
