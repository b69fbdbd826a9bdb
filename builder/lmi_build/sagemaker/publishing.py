"""Publishing what a job has completed, by the job itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build import artifacts
from lmi_build.errors import UsageInvalid
from lmi_build.execute.checkout import check_out
from lmi_build.store.files import remove_tree
from lmi_build.values.recipe import PublishSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from lmi_build.digest import JSONValue
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
) -> list[dict[str, JSONValue]]:
    """
    Publish every complete artifact that its recipe wants published.

    Args:
        plan: The whole plan.
        wishes: Artifact to the `publish` section of its recipe.
        store: Where results are.
        settings: Credentials.
        first: Which one to begin with, so that hosts begin with different ones.
        emit: Where events go.

    Returns:
        Rows of name, manifest_digest and uri, in the plan's order.

    Raises:
        LmiBuildError: The first that could not be published.
    """
    ready = list(complete(plan, store))
    turn = first % len(ready) if ready else 0
    rows: dict[str, dict[str, JSONValue]] = {}
    for artifact, results in ready[turn:] + ready[:turn]:
        manifest = next(
            e for e in results["package"].entries if e.path == "manifest.json"
        )
        uri = ""
        if artifact.name in wishes:
            spec = _spec(artifact.name, wishes[artifact.name])
            uri = _publish(artifact.name, results, store, spec, settings, emit)
        rows[artifact.name] = {
            "name": artifact.name,
            "manifest_digest": manifest.digest,
            "uri": uri,
        }
    return [rows[item.name] for item in plan.artifacts if item.name in rows]


def _spec(name: str, wish: Mapping[str, Any]) -> PublishSpec:
    try:
        return PublishSpec(**wish)
    except TypeError as error:
        raise UsageInvalid(
            f"the job's `publish` section of {name} is not of this version: {error}",
            code="job.bad-document",
            hints=("submit it again with this version of lmi-build",),
        ) from error


def _publish(
    name: str,
    results: Mapping[str, StageResult],
    store: Store,
    spec: PublishSpec,
    settings: Settings,
    emit: Emit,
) -> str:
    tree = settings.cache_dir / "published" / name
    try:
        check_out(store, results, tree)
        return artifacts.publish(tree, spec, settings, emit=emit).uri
    finally:
        remove_tree(tree)
