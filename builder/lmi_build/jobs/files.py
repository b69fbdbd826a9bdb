"""Everything that `job render` writes, as files of one folder."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lmi_build.jobs.pipeline import pipeline_definition
from lmi_build.store.files import explain_output_error, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lmi_build.jobs.graph import JobGraph, PlannedJob
    from lmi_build.jobs.optimization import Alternative
    from lmi_build.jobs.render import Rendered

REQUEST_FILES = {
    "CreateProcessingJob": "create-processing-job.json",
    "CreateTrainingJob": "create-training-job.json",
}


def graph_document(graph: JobGraph) -> dict[str, Any]:
    """The jobs of a graph as data: names instead of keys alone."""
    names = {key: stage.name for key, stage in graph.stages_by_key().items()}
    return {
        "recipe": graph.plan.recipe,
        "store": graph.store,
        "region": graph.region,
        "local": [{"key": key, "name": names[key]} for key in graph.local],
        "jobs": [_job_document(job, names) for job in graph.jobs],
    }


def _job_document(job: PlannedJob, names: Mapping[Any, str]) -> dict[str, Any]:
    rows = [{"key": key, "name": names[key]} for key in job.stages]
    needs = [{"key": key, "name": names[key]} for key in job.needs]
    return {**asdict(job), "stages": rows, "needs": needs}


def render_files(
    rendered: Rendered,
    *,
    policies: Mapping[str, Any] | None = None,
    pipeline: bool = False,
    alternatives: Iterable[Alternative] = (),
) -> dict[str, bytes]:
    """
    The files by their paths.

    Args:
        rendered: Jobs with their requests.
        policies: Of `policy.policies`.
        pipeline: Whether the definition of a pipeline is wanted.
        alternatives: Optimization jobs.
    """
    found = {"graph.json": _json(graph_document(rendered.graph))}
    for request in rendered.requests:
        found[f"{request.job}/{REQUEST_FILES[request.operation]}"] = _json(
            request.document
        )
        for name, data in request.channel.items():
            found[f"{request.job}/channel/{name}"] = data
    wheels = rendered.graph.wheels
    for name, data in wheels.files.items() if wheels else ():
        found[f"wheels/{name}"] = data
    for name, document in (policies or {}).items():
        found[f"policy-{name}.json"] = _json(document)
    if pipeline:
        found["pipeline.json"] = _json(pipeline_definition(rendered))
    for each in alternatives:
        if each.document is not None:
            name = f"{each.artifact}/create-optimization-job.json"
            found[name] = _json(each.document)
    return found


def _json(document: Any) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"


def write_files(files: Mapping[str, bytes], out: Path) -> None:
    """
    Write files below a folder, each whole or not at all.

    The package is in the channel of every job: equal files are one on disk, where the
    disk can do that.

    Raises:
        UsageInvalid: The folder cannot be written.
        DoesNotFit: The disk is full.
    """
    first: dict[int, Path] = {}
    for name, data in files.items():
        path = out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data, first.setdefault(id(data), path))
        except OSError as error:
            raise explain_output_error(
                error, "writing the requests", path, option="--out DIR"
            ) from error


def _write(path: Path, data: bytes, like: Path) -> None:
    """Write a file, or make it another name of an equal one."""
    if like != path:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.hardlink_to(like)
            return
    write_atomic(path, data)
