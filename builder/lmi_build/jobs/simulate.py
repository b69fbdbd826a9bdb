"""
A build as jobs, without AWS: the requests of `job render`, run on this machine.

Everything is as SageMaker would do it, but for the hardware and the image: hosts are
folders of this machine, S3 is a server on localhost, and a container runs this
machine's Python.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lmi_build import api
from lmi_build.errors import UsageInvalid
from lmi_build.execute.executor import execute
from lmi_build.jobs.images import in_region
from lmi_build.jobs.isolation import MANIFEST_FILE, bring_results, store_manifest
from lmi_build.jobs.render import render
from lmi_build.jobs.request import STORE_OUTPUT
from lmi_build.jobs.service import JobState
from lmi_build.jobs.shared import open_shared
from lmi_build.jobs.simulation import fault as faults
from lmi_build.jobs.simulation.job import COMPLETED, JobEnd, simulate_job
from lmi_build.jobs.simulation.server import KEYS, REGION, s3_server
from lmi_build.jobs.submission import StageRef, SubmittedJob
from lmi_build.jobs.union import gather
from lmi_build.jobs.upload import upload_folder
from lmi_build.values.job import PROCESSING
from lmi_build.values.recipe import JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lmi_build.digest import JSONValue
    from lmi_build.events import Event
    from lmi_build.jobs.graph import JobGraph, PlannedJob
    from lmi_build.jobs.render import Rendered
    from lmi_build.jobs.shared import SharedStore
    from lmi_build.jobs.simulation.fault import Fault
    from lmi_build.store.store import Store
    from lmi_build.values.job import JobResult
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.settings import Settings

BUCKET = "simulated"
IMAGE = f"000000000000.dkr.ecr.{REGION}.amazonaws.com/simulated:latest"
ROLE = "arn:aws:iam::000000000000:role/simulated"
# Of this machine's variables, those that an image or a network would set.
_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "HF_ENDPOINT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "LMI_BUILD_THREADS",
    "LMI_BUILD_MEMORY",
)
_UNKNOWN_SECRET = "simulated-secret"  # noqa: S105 - it opens nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """
    What came of it.

    Args:
        graph: The jobs that were planned.
        jobs: Those that ran, in their order.
        results: What their hosts wrote into the shared store.
    """

    graph: JobGraph
    jobs: tuple[JobEnd, ...]
    results: tuple[JobResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every job ran and completed."""
        ended = [job.status for job in self.jobs]
        return ended == [COMPLETED] * len(self.graph.jobs)

    @property
    def exit_code(self) -> int:
        """That of the first container that failed by itself; 1 where none did."""
        if self.ok:
            return 0
        codes = [host.exit_code for job in self.jobs for host in job.hosts]
        return next((code for code in codes if 0 < code <= 6 or code == 130), 1)  # noqa: PLR2004

    @property
    def artifacts(self) -> tuple[Mapping[str, JSONValue], ...]:
        """Artifacts that a host found complete, each once, published ones first."""
        rows = [row for result in self.results for row in result.artifacts]
        found: dict[JSONValue, Mapping[str, JSONValue]] = {}
        for row in sorted(rows, key=lambda row: not row["uri"]):
            found.setdefault(row["name"], row)
        return tuple(found.values())

    def built(self) -> dict[str, int]:
        """Stage to how often a host built it to its end."""
        counts: dict[str, int] = {}
        for job in self.jobs:
            for host in job.hosts:
                for stage in host.built:
                    counts[stage] = counts.get(stage, 0) + 1
        return counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """
    How jobs are simulated.

    Args:
        scratch: Folder for the hosts' folders and logs.
        num_hosts: Hosts of each job; None takes the recipe's.
        fault: What goes wrong.
        server: Another S3 server; None starts one.
        single: Keep everything in one job.
        mounted: Whether containers may have namespaces of their own.
        seed: Of the moment at which a host is lost.
        environment: The user's variables.
    """

    scratch: Path
    num_hosts: int | None = None
    fault: Fault | None = None
    server: str | None = None
    single: bool = False
    mounted: bool = True
    seed: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def simulate(
    recipes: Sequence[Recipe],
    settings: Settings,
    wish: Wish,
    *,
    emit: Callable[[str, Event], None] = lambda _host, _event: None,
) -> Simulated:
    """
    Build recipes as jobs on this machine.

    Args:
        recipes: From `load_many`.
        settings: The user's; the store and its credentials are the simulation's own.
        wish: How.
        emit: Told every event with its host, `here` for what runs before any job.

    Raises:
        LmiBuildError: The recipes cannot become jobs, or a local source cannot be
            read; what happens inside a job is in the result.
    """
    throttled = wish.fault is not None and wish.fault.kind == faults.THROTTLE
    if throttled and wish.server:
        raise UsageInvalid(
            f"`--fault throttle` needs a server of our own, not {wish.server}",
            code="usage.invalid",
            hints=("leave out `--s3`",),
        )
    own = s3_server(throttled=throttled)
    with nullcontext(wish.server) if wish.server else own as url:
        assert url is not None  # noqa: S101 - one of the two
        inside = _inside(settings, url)
        client = _client("s3", url)
        _make_bucket(client)
        rendered = _render(recipes, inside, wish, url)
        graph = rendered.graph
        _plant_secrets(graph, settings, url)
        local = replace(
            graph.plan,
            stages=tuple(s for s in graph.plan.stages if s.key in set(graph.local)),
        )
        store = api.open_store(inside)
        try:
            execute(
                local,
                store=store,
                settings=inside,
                emit=lambda event: emit("here", event),
            )
            with open_shared(graph.store, inside) as shared:
                ground = _Ground(
                    shared=shared, store=store, settings=inside, client=client, url=url
                )
                return _run_all(rendered, ground, wish, emit)
        finally:
            store.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ground:
    """The server's side of a simulation, and this machine's."""

    shared: SharedStore
    store: Store
    settings: Settings
    client: Any
    url: str


def _inside(settings: Settings, url: str) -> Settings:
    """The settings with the simulation's store in place of the user's."""
    aws = {**KEYS, "AWS_REGION": REGION, "AWS_ENDPOINT_URL": url}
    return replace(
        settings,
        store=f"s3://{BUCKET}/store",
        store_kms_key_id="",
        secrets={**settings.secrets, "aws": aws},
    )


def _client(service: str, url: str) -> Any:
    import boto3

    return boto3.client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


def _make_bucket(client: Any) -> None:
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=BUCKET)
    except ClientError:
        client.create_bucket(Bucket=BUCKET)


def _render(
    recipes: Sequence[Recipe], settings: Settings, wish: Wish, url: str
) -> Rendered:
    work = gather([_with_image(recipe) for recipe in recipes], settings)
    spec = replace(work.spec, num_hosts=wish.num_hosts or work.spec.num_hosts)
    # What would go to AWS goes to the server here, under the same names.
    publish = {
        name: {"to": f"s3://{BUCKET}/published", "endpoint_url": url}
        for name, section in work.publish.items()
        if str(section.get("to", "")).startswith("s3://")
    }
    work = replace(work, spec=spec, region=REGION, publish=publish)
    return render(work, single=wish.single, role_arn=ROLE, endpoint_url=url)


def _with_image(recipe: Recipe) -> Recipe:
    """The recipe with images of the region here, whose part this machine plays."""
    spec = recipe.job or JobSpec()
    image = in_region(spec.image or IMAGE, REGION)
    images = {kind: in_region(uri, REGION) for kind, uri in spec.images.items()}
    return replace(recipe, job=replace(spec, image=image, images=images))


def _plant_secrets(graph: JobGraph, settings: Settings, url: str) -> None:
    """Let the jobs' references lead to what this machine's environment has."""
    import json

    for variable, reference in graph.spec.secrets.items():
        known = {k: v for group in settings.secrets.values() for k, v in group.items()}
        value = known.get(variable) or _UNKNOWN_SECRET
        kind, _, rest = reference.partition(":")
        name, _, key = rest.partition("#")
        text = json.dumps({key: value}) if key else value
        if kind == "ssm":
            _client("ssm", url).put_parameter(
                Name=name, Value=text, Type="SecureString", Overwrite=True
            )
        else:
            _client("secretsmanager", url).create_secret(Name=name, SecretString=text)


def _run_all(
    rendered: Rendered,
    ground: _Ground,
    wish: Wish,
    emit: Callable[[str, Event], None],
) -> Simulated:
    """Run jobs in their order, until one does not complete."""
    ends: list[JobEnd] = []
    results: list[JobResult] = []
    isolated = rendered.graph.spec.network_isolation
    wheels = rendered.graph.wheels
    if wheels is not None:
        upload_folder(ground.shared.place, wheels.files)
    for job, request in zip(rendered.graph.jobs, rendered.requests, strict=True):
        upload_folder(ground.shared.place, request.channel)
        if isolated and job.needs:
            manifest = store_manifest(ground.shared, job.needs)
            ground.shared.place.create(f"jobs/{job.name}/{MANIFEST_FILE}", manifest)
        end = simulate_job(
            job.kind,
            request.document,
            client=ground.client,
            environment=_environment(wish, ground.url, isolated=isolated),
            scratch=wish.scratch / job.name,
            fault=wish.fault,
            emit=emit,
            mounted=wish.mounted,
            seed=wish.seed,
        )
        ends.append(end)
        if isolated:
            _bring(job, rendered.graph, ground)
        results += ground.shared.results(job.name)
        if end.status != COMPLETED:
            break
    return Simulated(graph=rendered.graph, jobs=tuple(ends), results=tuple(results))


def _bring(job: PlannedJob, graph: JobGraph, ground: _Ground) -> None:
    """Commit what a job without network left in its output."""
    by_key = graph.stages_by_key()
    refs = tuple(StageRef(name=by_key[key].name, key=key) for key in job.stages)
    base = f"{graph.store}/jobs/{job.name}"
    kind = STORE_OUTPUT if job.kind == PROCESSING else f"output/{job.name}/output"
    bring_results(
        SubmittedJob(name=job.name, kind=job.kind, request={}, stages=refs),
        JobState(
            name=job.name,
            kind=job.kind,
            arn="",
            status=COMPLETED,
            outputs={STORE_OUTPUT: f"{base}/{kind}"},
        ),
        shared=ground.shared,
        store=ground.store,
        settings=ground.settings,
    )


def _environment(wish: Wish, url: str, *, isolated: bool) -> dict[str, str]:
    """What SageMaker and the image would set; without a network, no way to any."""
    passed = {n: wish.environment[n] for n in _PASSED_ON if wish.environment.get(n)}
    python = {"LMI_BUILD_PYTHON": sys.executable}
    if isolated:
        local = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
        return {**{n: v for n, v in passed.items() if n in local}, **python}
    return {
        **passed,
        **python,
        **KEYS,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": url,
    }
