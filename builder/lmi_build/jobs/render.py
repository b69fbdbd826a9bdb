"""Everything that can be written down of a build as jobs, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.jobs.api_check import refuse
from lmi_build.jobs.cut import cut
from lmi_build.jobs.request import make_request, plan_bytes, role_of
from lmi_build.jobs.wheel import make_wheel

if TYPE_CHECKING:
    from lmi_build.jobs.graph import JobGraph
    from lmi_build.jobs.request import Request
    from lmi_build.jobs.union import Work
    from lmi_build.jobs.wheel import Wheel


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """
    A graph with its requests.

    Args:
        graph: The jobs.
        requests: Theirs, in the same order; each passes the service's own model.
    """

    graph: JobGraph
    requests: tuple[Request, ...]


def render(
    work: Work,
    *,
    single: bool = False,
    role_arn: str | None = None,
    wheel: Wheel | None = None,
    endpoint_url: str | None = None,
) -> Rendered:
    """
    Cut a plan into jobs and write their requests.

    Args:
        work: The plan, with what it came from.
        single: Keep everything in one job.
        role_arn: Role that the jobs run as; None takes the recipe's.
        wheel: The package; None packs the running one.
        endpoint_url: Another S3 server than AWS's, as the jobs see it.

    Raises:
        RecipeInvalid: A stage cannot run as the recipes say.
        UsageInvalid: `job.no-role`; `job.request`: SageMaker would refuse a request.
        ToolMissing: `job.no-metadata`: the running package cannot be packed.
    """
    packed = wheel or make_wheel()
    graph = cut(work, single=single, salt=packed.digest)
    role = role_arn or role_of(graph)
    plan = plan_bytes(graph)
    requests = tuple(
        make_request(
            job,
            graph,
            role_arn=role,
            wheel=packed,
            plan=plan,
            endpoint_url=endpoint_url,
        )
        for job in graph.jobs
    )
    for request in requests:
        refuse(request.operation, request.document)
    return Rendered(graph=graph, requests=requests)
