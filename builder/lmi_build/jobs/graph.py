"""What a build becomes on SageMaker: jobs, and which of them wait for which."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import Digest, JSONValue
    from lmi_build.jobs.wheelhouse import Wheelhouse
    from lmi_build.values.recipe import JobSpec
    from lmi_build.values.stage import Plan, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedJob:
    """
    One job, not yet a request.

    Args:
        name: Its name in SageMaker; the same work asked for again has the same name.
        label: Short and unique in its graph, such as `cpu` or `gpu-2`.
        kind: `processing` or `training`.
        instance: Instance type of each host.
        num_hosts: Hosts that share the stages.
        image: URI of the image.
        volume_size_gb: Disk of one host to ask for; None where the instance has a disk
            of its own that cannot be chosen.
        volume_kms_key_id: Key of that disk; None where it has none or takes none.
        max_runtime_seconds: When SageMaker stops it.
        stages: Keys it builds, in the plan's order.
        needs: Keys it reads and does not build: of earlier jobs, or made locally.
        after: Names of the jobs that build them.
        disk_bytes: What the plan estimates for its disk.
        ram_bytes: What the plan estimates for one stage's memory, at most.
        reasons: Why it is so, in words.
        warnings: What will go wrong, or is likely to, in words.
    """

    name: str
    label: str
    kind: str
    instance: str
    num_hosts: int
    image: str
    volume_size_gb: int | None
    volume_kms_key_id: str | None
    max_runtime_seconds: int
    stages: tuple[Digest, ...]
    needs: tuple[Digest, ...]
    after: tuple[str, ...]
    disk_bytes: int
    ram_bytes: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class JobGraph:
    """
    A plan as jobs.

    Args:
        plan: Every stage of every recipe, each once.
        local: Keys of stages that run where the graph is submitted, before any job:
            sources that lie there.
        jobs: In an order that respects `after`.
        spec: What holds for all of them.
        store: `s3://bucket/prefix` of the shared store.
        region: AWS region.
        publish: Artifact to the `publish` section of its recipe.
        wheels: What jobs install beside what their images have.
    """

    plan: Plan
    local: tuple[Digest, ...]
    jobs: tuple[PlannedJob, ...]
    spec: JobSpec
    store: str
    region: str
    publish: Mapping[str, Mapping[str, JSONValue]] = field(default_factory=dict)
    wheels: Wheelhouse | None = None

    def job(self, name: str) -> PlannedJob:
        """
        The job of a name.

        Raises:
            KeyError: There is none.
        """
        for job in self.jobs:
            if job.name == name:
                return job
        raise KeyError(name)

    def publishes(self, job: PlannedJob) -> dict[str, dict[str, JSONValue]]:
        """
        What a job publishes when it ends.

        Those artifacts to S3 whose last stage it builds; a folder of the submitting
        machine is out of a job's reach, and so is S3 for a job without network.
        """
        if self.spec.network_isolation:
            return {}
        built = set(job.stages)
        found = {}
        for artifact in self.plan.artifacts:
            wish = self.publish.get(artifact.name)
            last = [k for k in ("verify", "package") if k in artifact.stages][:1]
            here = any(artifact.stages[kind] in built for kind in last)
            if here and wish and str(wish["to"]).startswith("s3://"):
                found[artifact.name] = dict(wish)
        return found

    def stages_by_key(self) -> dict[Digest, Stage]:
        """Every stage by its key."""
        return {stage.key: stage for stage in self.plan.stages}
