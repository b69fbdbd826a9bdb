"""What the store still knows of how an artifact was made, for its report page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.digest import digest_bytes
from lmi_build.execute.record import past_runs
from lmi_build.report.load import VERIFY_NAME, report_of_results, stage_costs
from lmi_build.store.store import Store
from lmi_build.values.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lmi_build.report.data import ReportData, StageCost
    from lmi_build.values.manifest import Manifest
    from lmi_build.values.result import BuildResult, StageResult
    from lmi_build.values.stage import Plan

# Their keys are not in the manifest, which is written before them.
_LAST_KINDS = ("package", "verify")


def known_costs(
    manifest: Manifest, data: bytes, store_root: Path
) -> tuple[StageCost, ...]:
    """
    What the stages cost that made an artifact; empty when nothing is known here.

    Args:
        manifest: Of the artifact.
        data: Its bytes.
        store_root: The store; it need not exist.
    """
    store = Store(store_root)
    keys: dict[str, Any] = dict(manifest.plan)
    results = _found(store, keys)
    for run in _runs(store):
        stages = {row["name"]: row["key"] for row in run.get("stages", ())}
        mine = {
            kind: stages[f"{manifest.name}/{kind}"]
            for kind in _LAST_KINDS
            if f"{manifest.name}/{kind}" in stages
        }
        last = _found(store, mine)
        if "package" in last and _is_of(last["package"], data):
            built = set(run.get("built", ()))
            results |= last
            return stage_costs(
                results,
                {kind: f"{manifest.name}/{kind}" not in built for kind in results},
            )
    return stage_costs(results, {})


def reports_of_build(
    result: BuildResult, store_root: Path
) -> Mapping[Path, ReportData]:
    """
    The report of every artifact, by where it goes in the record of the run.

    Empty when nothing was built, because such a run has no record.
    """
    if not result.num_built:
        return {}
    read = _reader(Store(store_root))
    cached = {row.result.key: row.cached for row in result.rows}
    return {
        result.record_dir / f"{name}.report.html": report_of_results(
            results,
            read,
            cached={kind: cached[item.key] for kind, item in results.items()},
        )
        for name, results in result.artifacts.items()
        if "package" in results
    }


def reports_of_missed_gates(plan: Plan, store_root: Path) -> Mapping[Path, ReportData]:
    """The report of every artifact whose verification left numbers and no result."""
    store = Store(store_root)
    records = sorted((store_root / "builds" / plan.recipe).glob("*/build.json"))
    if not records:
        return {}
    pages = {}
    for artifact in plan.artifacts:
        results = _found(store, artifact.stages)
        measured = store.state_dir(artifact.stages["verify"]) / VERIFY_NAME
        if "package" in results and "verify" not in results and measured.is_file():
            path = records[-1].with_name(f"{artifact.name}.report.html")
            pages[path] = report_of_results(
                results,
                _reader(store),
                cached={},
                verification=measured.read_bytes(),
            )
    return pages


def _found(store: Store, keys: Mapping[str, Any]) -> dict[str, StageResult]:
    looked = {kind: store.lookup(key) for kind, key in keys.items()}
    return {kind: result for kind, result in looked.items() if result is not None}


def _runs(store: Store) -> Iterator[dict[str, Any]]:
    for folder in sorted((store.root / "builds").glob("*")):
        yield from past_runs(store.root, folder.name)


def _is_of(package: StageResult, manifest: bytes) -> bool:
    digests = {entry.path: entry.digest for entry in package.entries}
    return digests.get(MANIFEST_NAME) == digest_bytes(manifest)


def _reader(store: Store) -> Callable[[str], bytes]:
    return lambda digest: store.blob_path(digest).read_bytes()
