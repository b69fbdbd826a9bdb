"""
The verify stage of exported decoders, on a machine without Neuron cores.

Order: every hash, then the files that the exporter leaves, then what the release's own
container does with the folder when it starts. Nothing here runs a graph; the weights
are those of the float model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lmi_build.backends.folder import local_folder
from lmi_build.backends.neuronx.export_startup import export_startup
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.checkpoint.formats.rounded_nxdi import NxdiInt8Reader
from lmi_build.errors import VerifyFailed
from lmi_build.verify.integrity import refuse_if_damaged
from lmi_build.verify.proofs import (
    REHEARSED,
    finish,
    measure_rounding,
    note,
    refuse_unless_loads,
    report_head,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.numerics.compare import Drift
    from lmi_build.spi import Job
    from lmi_build.values.manifest import Manifest


def run(job: Job, emit: Emit) -> None:
    """
    Write `job.out/verify.json`.

    Inputs: `package`, the artifact, and `model`, the float model. Parameters beside the
    recipe's `verify` section: `release` (name in the catalogue),
    `family` (of the machine that serves), `rehearsal` (bool) and `call` (the
    `NeuronCall` that was compiled, as JSON).

    Raises:
        VerifyFailed: The artifact is not what was planned, or the container would not
            load it as it is.
        GateFailed: `verify.gate-missed`; the message holds every number.
    """
    params = cast("dict[str, Any]", job.params)
    root = job.inputs["package"]
    manifest = refuse_if_damaged(root)
    report = report_head(
        manifest, kind=params["call"]["loader"], rehearsal=params["rehearsal"]
    )
    if params["rehearsal"]:
        note(job, emit, "warning", "verify.rehearsal", REHEARSED)
    else:
        folder = local_folder(root)
        _refuse_missing(folder, params["call"])
        report["startup"] = [_startup(job, emit, folder, manifest)]
    finish(job, emit, manifest, report, _quality(job, emit, manifest))


def _refuse_missing(folder: Folder, call: Mapping[str, Any]) -> None:
    missing = sorted(path for path in call["files"] if not folder.sizes.get(path))
    if missing:
        shown = ", ".join(f"`{path}`" for path in missing[:4])
        raise VerifyFailed(
            f"{len(missing)} files of the compiled model are missing or empty: {shown}",
            code="verify.incomplete",
            hints=("build the artifact again",),
        )


def _startup(
    job: Job, emit: Emit, folder: Folder, manifest: Manifest
) -> dict[str, JSONValue]:
    """What the release's container does with the folder; it must load it."""
    params = cast("dict[str, Any]", job.params)
    release = neuron_releases()[params["release"]]
    variables = manifest.deploy.get("environment")
    verdict = export_startup(
        folder,
        release,
        family=params["family"],
        environment=variables if isinstance(variables, dict) else {},
    )
    refuse_unless_loads(job, emit, verdict, release.name)
    return {
        "release": release.name,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
    }


def _quality(job: Job, emit: Emit, manifest: Manifest) -> Drift | None:
    """What the library's rounding to int8 costs; None where it rounds nothing."""
    params = cast("dict[str, Any]", job.params)
    config = params["call"]["arguments"].get("neuron_config", {})
    if config.get("quantized") is not True:
        return None
    return measure_rounding(
        job, emit, manifest, lambda: NxdiInt8Reader(job.inputs["model"])
    )
