"""
The verify stage of TensorRT-LLM artifacts, on a machine without their GPU.

Order: every hash, then the engine's or the checkpoint's own words against the plan,
then what each release of the container does with the folder when it starts, then the
quality of the weights: what the quantized checkpoint means is computed block by block
beside the float model, and the gates judge that. Nothing here runs an engine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from lmi_build.backends.folder import local_folder
from lmi_build.backends.trtllm.engine_checks import (
    Expected,
    checkpoint_problems,
    engine_problems,
    unknowns,
)
from lmi_build.backends.trtllm.engine_folder import (
    read_checkpoint_folder,
    read_engine_folder,
)
from lmi_build.backends.trtllm.startup import startup, startup_everywhere
from lmi_build.catalog.releases import releases
from lmi_build.verify.integrity import refuse_if_damaged
from lmi_build.verify.proofs import (
    finish,
    measure_codes,
    note,
    refuse,
    refuse_unless_loads,
    report_head,
    startup_rows,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.catalog.releases import Release
    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.spi import Job
    from lmi_build.values.manifest import Manifest


def run(job: Job, emit: Emit) -> None:
    """
    Write `job.out/verify.json`.

    Raises:
        VerifyFailed: The artifact is not what was planned, or the container would
            compile it when it starts.
        GateFailed: `verify.gate-missed`; the message holds every number.
    """
    params = cast("dict[str, Any]", job.params)
    root = job.inputs["package"]
    manifest = refuse_if_damaged(root)
    release = releases()[params["release"]]
    report = report_head(manifest, kind=params["kind"], rehearsal=params["rehearsal"])
    if params["rehearsal"]:
        note(job, emit, "warning", "verify.rehearsal", _REHEARSED)
    else:
        folder = local_folder(root)
        report["engine"] = _engine(job, emit, manifest, folder, release)
        report["startup"] = _startup(job, emit, folder, release)
    drift = measure_codes(job, emit, manifest, computed_by="the engine")
    finish(job, emit, manifest, report, drift)


_REHEARSED = (
    "the engine was rehearsed, not built: its commands stand in rehearsal.json, and"
    " `publish` refuses this artifact"
)


def _engine(
    job: Job, emit: Emit, manifest: Manifest, folder: Folder, release: Release
) -> dict[str, JSONValue]:
    """What the engine or the checkpoint says about itself, held against the plan."""
    params = cast("dict[str, Any]", job.params)
    kind = params["kind"]
    if kind == "hf-quantized":
        return {}
    inside = folder.inside(str(manifest.serving["engine_dir"]))
    expected = Expected(
        trtllm=release.trtllm,
        tensor_parallel_size=params["tensor_parallel_size"],
        pipeline_parallel_size=params["pipeline_parallel_size"],
        bounds={
            name: value
            for name, value in manifest.bounds.items()
            if isinstance(value, int)
        },
        quant_algo=params["quant_algo"],
        kv_cache_quant_algo=params["kv_cache_quant_algo"],
        dtype=params["dtype"],
        device=str(manifest.compatibility["device"]),
        compute_capability=params["compute_capability"],
    )
    if kind == "checkpoint":
        checkpoint = read_checkpoint_folder(inside)
        refuse(checkpoint_problems(checkpoint, expected))
        return {"ranks": len(checkpoint.ranks), "quant_algo": checkpoint.quant_algo}
    parts = cast("list[str]", params["parts"])
    if len(parts) > 1:
        # Each part has lengths of its own; the build held them against the plan.
        expected = replace(expected, bounds=_shared(expected.bounds))
    rows = [
        _part(job, emit, inside.inside(part.rstrip("/") or "."), expected, release)
        for part in parts
    ]
    return rows[-1]


def _shared(bounds: Mapping[str, int]) -> dict[str, int]:
    """What an encoder and its decoder have in common."""
    return {name: bounds[name] for name in ("max_batch_size", "max_beam_width")}


def _part(
    job: Job, emit: Emit, folder: Folder, expected: Expected, release: Release
) -> dict[str, JSONValue]:
    engine = read_engine_folder(folder)
    refuse(engine_problems(engine, expected))
    found = engine.built_on.tensorrt if engine.built_on else release.tensorrt
    if release.tensorrt and found != release.tensorrt:
        # The release's own image decides; the catalogue only says what it should have.
        message = (
            f"it was built with TensorRT {found}, the catalogue says that"
            f" {release.name} has {release.tensorrt}"
        )
        note(job, emit, "warning", "verify.other-tensorrt", message)
    for what in unknowns(engine):
        note(job, emit, "warning", "verify.unknown", f"the engine does not say {what}")
    return {
        "version": engine.version,
        "ranks": len(engine.ranks),
        "quant_algo": engine.quant_algo,
        "bounds": dict(engine.bounds),
    }


def _startup(job: Job, emit: Emit, folder: Folder, release: Release) -> list[JSONValue]:
    """What each release of the container does with the folder; ours must load it."""
    if job.params["kind"] == "checkpoint" or not release.lmi:
        return []
    own = startup(folder, release.lmi, trtllm=release.trtllm)
    refuse_unless_loads(job, emit, own, f"LMI {release.lmi}")
    return startup_rows(startup_everywhere(folder))
