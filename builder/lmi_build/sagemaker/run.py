"""One container of a job, from its start to its last word."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import (
    DoesNotFit,
    Interrupted,
    LmiBuildError,
    StageFailed,
    UsageInvalid,
    is_disk_full,
)
from lmi_build.execute.executor import execute
from lmi_build.execute.redact import Redactor
from lmi_build.execute.shared import execute_shared
from lmi_build.execute.stores import open_store
from lmi_build.plan.saved import plan_from_json
from lmi_build.sagemaker import checks, isolated, results
from lmi_build.sagemaker.places import (
    JOB_CHANNEL,
    ML_ROOT,
    ROOT_VARIABLE,
    STORE_CHANNEL,
    Places,
    find_places,
    read_document,
    read_told,
)
from lmi_build.sagemaker.publishing import publish_complete
from lmi_build.sagemaker.secrets import with_secrets
from lmi_build.sagemaker.stopping import Stop, stop_error
from lmi_build.sagemaker.toolchains import install_missing
from lmi_build.sagemaker.watch import Watch
from lmi_build.store.lease import LEASE_SECONDS
from lmi_build.store.tiered import TieredStore
from lmi_build.values.job import PLAN_FILE, PROCESSING, TRAINING
from lmi_build.values.settings import settings_from_environ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.sagemaker.places import Told
    from lmi_build.store.store import Store
    from lmi_build.values.job import JobDocument, JobResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan, Stage

_LARGER_VOLUME = ("raise `job.volume_size_gb` in the recipe, or set it to `auto`",)
_LARGER_HOST = ("choose an instance with more memory: `job.instance`",)
# What to do about it on a machine that only a request can change.
_HINTS: Mapping[str, tuple[str, ...]] = {
    "store.disk-full": _LARGER_VOLUME,
    "store.disk-too-small": _LARGER_VOLUME,
    "stage.killed": _LARGER_HOST,
    "stage.out-of-memory": _LARGER_HOST,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """
    What this container has to do.

    Args:
        document: From the channel `job`.
        told: From SageMaker.
        plan: The whole plan.
        settings: The environment, with the job's own places.
        store: Where results are.
    """

    document: JobDocument
    told: Told
    plan: Plan
    settings: Settings
    store: Store

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of this job; what stopped them where they were planned may be here."""
        wanted = set(self.document.stages)
        return tuple(
            replace(stage, blocker=None)
            for stage in self.plan.stages
            if stage.key in wanted
        )

    @property
    def alone(self) -> bool:
        """Whether the job may not reach S3."""
        return not self.document.store


def main(environ: Mapping[str, str]) -> int:
    """
    Run the job that the channels describe.

    Returns:
        The exit status, with everything written down.
    """
    root = Path(environ.get(ROOT_VARIABLE) or ML_ROOT)
    watch = Watch(places=_likely_places(root))
    watch.foretell()
    stop = Stop(on_stop=lambda reason: _foretell_stop(watch, reason))
    stop.watch()
    try:
        result = _run(root, environ, watch, stop)
        stop.done()
    except (LmiBuildError, KeyboardInterrupt) as error:
        result = _failed(watch, _stopped(watch, stop.reason) or error)
    except Exception as error:  # noqa: BLE001 - the last frame of the program
        watch.say(traceback.format_exc())
        result = _failed(watch, _named(error))
    stop.done()
    return _end(watch, result)


def _named(error: Exception) -> LmiBuildError:
    """Name what no room below could: a full disk, or a fault of ours."""
    if isinstance(error, OSError) and is_disk_full(error):
        return DoesNotFit(
            f"no space left on the disk: {error}",
            code="job.disk-full",
            hints=_LARGER_VOLUME,
        )
    return StageFailed(
        f"{type(error).__name__}: {error}",
        code="job.crashed",
        hints=("the job's log has the whole story; please report it",),
    )


def _likely_places(root: Path) -> Places:
    """Where to leave a message before anything could be read."""
    trained = (root / "input" / "config").is_dir()
    return Places(kind=TRAINING if trained else PROCESSING, root=root)


def _stopped(watch: Watch, reason: str) -> Interrupted | None:
    if not reason:
        return None
    return stop_error(
        reason,
        where=watch.running,
        max_runtime_seconds=watch.max_runtime_seconds,
        alone=watch.alone,
    )


def _foretell_stop(watch: Watch, reason: str) -> None:
    """Leave the last word now: saving state may take longer than we are given."""
    error = _stopped(watch, reason)
    assert error is not None  # noqa: S101 - there is a reason
    with results.trying(watch, "writing the message"):
        results.end_message(watch, _failed(watch, error))


def _run(root: Path, environ: Mapping[str, str], watch: Watch, stop: Stop) -> JobResult:
    places = watch.places = find_places(root)
    document = read_document(places)
    told = read_told(places, document, environ)
    watch.name, watch.host = told.name, told.host
    watch.max_runtime_seconds = told.max_runtime_seconds
    stop.limit(told.max_runtime_seconds)
    settings = _settings(places, document, environ)
    watch.redactor = Redactor(settings.secret_values())
    path = places.channel(JOB_CHANNEL) / PLAN_FILE
    plan = _read_plan(path, document)
    store = open_store(settings, lease_seconds=document.lease_seconds or LEASE_SECONDS)
    job = Job(document=document, told=told, plan=plan, settings=settings, store=store)
    watch.store, watch.alone = store, job.alone
    watch.tools = checks.versions_here(plan.stages, settings)
    if not job.alone:
        return _work(job, environ, watch)
    isolated.refuse_many_hosts(told.hosts)
    came = isolated.take_in(places.channel(STORE_CHANNEL), store)
    try:
        return _work(job, environ, watch)
    finally:
        isolated.give_out(job.stages, store, places.output(STORE_CHANNEL), came)


def _settings(
    places: Places, document: JobDocument, environ: Mapping[str, str]
) -> Settings:
    """The environment, with the job's store on the job's own volume."""
    found = settings_from_environ(
        environ,
        cache_dir=Path(environ.get("LMI_BUILD_CACHE") or places.volume),
        store=document.store,
    )
    aws = dict(found.secrets.get("aws", {}))
    if document.region:
        aws["AWS_REGION"] = document.region
    if document.endpoint_url:
        aws["AWS_ENDPOINT_URL_S3"] = document.endpoint_url
    offline = found.offline or not document.store
    return replace(found, offline=offline, secrets={**found.secrets, "aws": aws})


def _read_plan(path: Path, document: JobDocument) -> Plan:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageInvalid(
            f"{path} cannot be read: {error.strerror}",
            code="job.bad-document",
            hints=("submit it again: its channel is not whole",),
        ) from error
    plan = plan_from_json(data, str(path))
    foreign = set(document.stages) - {stage.key for stage in plan.stages}
    if foreign:
        raise UsageInvalid(
            f"the job names {len(foreign)} stages that its plan does not have,"
            f" the first is {min(foreign)}",
            code="job.bad-document",
            hints=("submit it again: its channel holds another job's plan",),
        )
    return plan


def _work(job: Job, environ: Mapping[str, str], watch: Watch) -> JobResult:
    """Check, build, publish."""
    job = _checked(job, environ, watch)
    failure: LmiBuildError | None = None
    try:
        _build(job, watch)
    except Interrupted:
        raise
    except LmiBuildError as error:
        failure = error
    rows, unpublished = publish_complete(
        job.plan,
        job.document.publish,
        job.store,
        job.settings,
        first=job.told.index,
        emit=watch.emit,
    )
    failure = failure or unpublished
    if failure is not None:
        return _failed(watch, failure, artifacts=rows)
    return watch.result(exit_code=0, message=_summary(rows), artifacts=rows)


def _checked(job: Job, environ: Mapping[str, str], watch: Watch) -> Job:
    """Refuse what cannot end well, then read the secrets."""
    found = job.store.lookup_all([stage.key for stage in job.stages])
    missing = [stage for stage in job.stages if found[stage.key] is None]
    made = {stage.key for stage in missing}
    inputs = {key for stage in missing for key in stage.inputs.values()} - made
    known = job.store.lookup_all(inputs)
    if not job.alone:
        install_missing(missing, job.settings, environ, watch.say)
    checks.refuse_other_tools(missing, job.settings, name=job.told.name)
    checks.refuse_absent_inputs(missing, known)
    inputs_bytes = sum(
        result.out_bytes
        for result in known.values()
        if result is not None and not job.store.is_here(result)
    )
    machine = checks.look_around(job.settings.cache_dir)
    checks.refuse_too_small(missing, inputs_bytes, machine)
    settings = with_secrets(
        job.settings, job.document.secrets, region=job.document.region
    )
    watch.redactor = Redactor(settings.secret_values())
    return replace(job, settings=settings)


def _build(job: Job, watch: Watch) -> None:
    """Build this job's stages; hosts of one job share them."""
    if len(job.told.hosts) == 1:
        plan = replace(job.plan, stages=job.stages)
        execute(plan, store=job.store, settings=job.settings, emit=watch.emit)
        return
    execute_shared(
        replace(
            job.plan,
            stages=tuple(replace(stage, blocker=None) for stage in job.plan.stages),
        ),
        store=job.store,
        settings=job.settings,
        emit=watch.emit,
        host=job.told.host,
        run=job.told.name,
        keys=job.document.stages,
    )


def _failed(
    watch: Watch,
    error: BaseException,
    *,
    artifacts: tuple[dict[str, JSONValue], ...] = (),
) -> JobResult:
    """What an error makes of the job; the stage that ran is named."""
    if not isinstance(error, LmiBuildError):  # a second interrupt, after the first
        error = stop_error("stopped", where=watch.running, max_runtime_seconds=0)
    where = watch.running
    named = not where or where in error.message
    return watch.result(
        exit_code=error.exit_code,
        code=error.code,
        message=error.message if named else f"{where}: {error.message}",
        hints=_HINTS.get(error.code, ()) or error.hints,
        artifacts=artifacts,
    )


def _summary(rows: tuple[dict[str, JSONValue], ...]) -> str:
    """One line for each artifact: where it is, and what it is."""
    lines = [f"{row['uri'] or row['name']} {row['manifest_digest']}" for row in rows]
    return "\n".join(["ok", *lines])


def _end(watch: Watch, result: JobResult) -> int:
    """Write everything down, the message first: it is the shortest."""
    with results.trying(watch, "writing the message"):
        results.end_message(watch, result)
    if result.code:
        watch.say(f"error[{result.code}]: {result.message}")
        for hint in result.hints:
            watch.say(f"hint: {hint}")
    store = watch.store
    with results.trying(watch, "writing the report"):
        logs = store.root / "builds" if store is not None else None
        results.write_report(watch, result, logs)
        results.materialise_links(watch.places)
    if isinstance(store, TieredStore):
        with results.trying(watch, "writing the result to the shared store"):
            results.put_result(store.far.remote, result)
            store.close()
    return result.exit_code
