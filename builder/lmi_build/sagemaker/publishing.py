"""Publishing what a job has completed, by the job itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build import artifacts
from lmi_build.digest import digest_bytes, digest_json
from lmi_build.errors import Interrupted, LmiBuildError, UsageInvalid
from lmi_build.execute.checkout import check_out
from lmi_build.publishers.destination import open_place
from lmi_build.publishers.layout import LATEST, parse_latest, version_prefix
from lmi_build.values.manifest import MANIFEST_NAME
from lmi_build.values.publish import Transfer
from lmi_build.values.recipe import PublishSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from lmi_build.digest import Digest, JSONValue
    from lmi_build.events import Emit
    from lmi_build.store.store import Store
    from lmi_build.values.result import StageResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan, PlannedArtifact


def complete(
    plan: Plan, store: Store
) -> Iterator[tuple[PlannedArtifact, Mapping[str, StageResult]]]:
    """Artifacts whose package, and verification if there is one, are in the store."""
    for artifact in plan.artifacts:
        last = {
            kind: key
            for kind, key in artifact.stages.items()
            if kind in {"package", "verify"}
        }
        found = {kind: store.lookup(key) for kind, key in last.items()}
        results = {kind: result for kind, result in found.items() if result}
        if "package" in results and len(results) == len(last):
            yield artifact, results


def publish_complete(
    plan: Plan,
    wishes: Mapping[str, Mapping[str, JSONValue]],
    store: Store,
    settings: Settings,
    *,
    first: int,
    emit: Emit,
) -> tuple[tuple[dict[str, JSONValue], ...], LmiBuildError | None]:
    """
    Publish every complete artifact that its recipe wants published.

    Hosts of one job come here together; each begins with another artifact, one is
    published by one host at a time, and what another has published is left alone.

    Args:
        plan: The whole plan.
        wishes: Artifact to the `publish` section of its recipe.
        store: Where results are.
        settings: Credentials.
        first: Which one to begin with.
        emit: Where events go.

    Returns:
        Rows of name, manifest_digest and uri, in the plan's order; and why the first
        of those could not be published that could not be, or None.
    """
    rows: dict[str, dict[str, JSONValue]] = {}
    failure: LmiBuildError | None = None
    try:
        ready = list(complete(plan, store))
    except LmiBuildError as error:
        return (), error
    turn = first % len(ready) if ready else 0
    for artifact, results in ready[turn:] + ready[:turn]:
        digest = next(
            e.digest for e in results["package"].entries if e.path == MANIFEST_NAME
        )
        uri = ""
        if artifact.name in wishes:
            spec = _spec(artifact.name, wishes[artifact.name])
            one = Wanted(name=artifact.name, digest=digest, results=results, spec=spec)
            try:
                uri = _publish(one, store, settings, emit)
            except Interrupted:
                raise
            except LmiBuildError as error:
                failure = failure or error
        row = {"name": artifact.name, "manifest_digest": digest, "uri": uri}
        rows[artifact.name] = dict(row)
    told = [rows[item.name] for item in plan.artifacts if item.name in rows]
    return tuple(told), failure


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """
    One artifact to publish.

    Args:
        name: Its name.
        digest: Of its manifest.
        results: Kind to result.
        spec: Where to.
    """

    name: str
    digest: Digest
    results: Mapping[str, StageResult]
    spec: PublishSpec


def _spec(name: str, wish: Mapping[str, Any]) -> PublishSpec:
    try:
        return PublishSpec(**wish)
    except TypeError as error:
        raise UsageInvalid(
            f"the job's `publish` section of {name} is not of this version: {error}",
            code="job.bad-document",
            hints=("submit it again with this version of lmi-build",),
        ) from error


def _publish(one: Wanted, store: Store, settings: Settings, emit: Emit) -> str:
    uri = _published(one, settings)
    if uri:
        return uri
    key = digest_json({"publish": one.spec.to, "manifest": one.digest})
    with store.building(key, lambda: None) as scratch:
        uri = _published(one, settings)
        if uri:
            return uri
        tree = scratch / one.name
        check_out(store, one.results, tree)
        return artifacts.publish(tree, one.spec, settings, emit=emit).uri


def _published(one: Wanted, settings: Settings) -> str:
    """Where it lies, if it does and is the latest version; else an empty string."""
    prefix = version_prefix(one.name, one.digest)
    with open_place(one.spec.to, one.spec, settings, Transfer()) as place:
        manifest = place.read(prefix + MANIFEST_NAME)
        if manifest is None or digest_bytes(manifest.data) != one.digest:
            return ""
        latest = place.read(f"{one.name}/{LATEST}")
        if latest is None:
            return ""
        points_to = parse_latest(latest.data, where=place.uri(LATEST))
        return place.uri(prefix) if points_to == one.digest else ""
