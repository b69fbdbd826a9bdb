"""
The verify stage of folders for vLLM, on a machine without their GPU.

Order: every hash, then the written properties against the plan, then what the image
does with the folder when it starts, then the quality of the weights: what the quantized
checkpoint means is computed block by block beside the float model, and the gates judge
that. Nothing here runs vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lmi_build.backends.folder import local_folder, read_text
from lmi_build.backends.java_properties import java_properties
from lmi_build.backends.vllm.startup import vllm_startup, vllm_startup_everywhere
from lmi_build.errors import Problem
from lmi_build.package.properties import PROPERTIES_NAME
from lmi_build.verify.integrity import refuse_if_damaged
from lmi_build.verify.proofs import (
    finish,
    measure_codes,
    refuse,
    refuse_unless_loads,
    report_head,
    startup_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.events import Emit
    from lmi_build.spi import Job


def run(job: Job, emit: Emit) -> None:
    """
    Write `job.out/verify.json`.

    Raises:
        VerifyFailed: The artifact is not what was planned, or the image would not load
            it as it is.
        GateFailed: `verify.gate-missed`; the message holds every number.
    """
    params = cast("dict[str, Any]", job.params)
    root = job.inputs["package"]
    manifest = refuse_if_damaged(root)
    folder = local_folder(root)
    refuse([*_differences(folder, params["properties"])])
    report = report_head(manifest, kind="hf-folder", rehearsal=False)
    own = vllm_startup(folder, str(params["release"]))
    refuse_unless_loads(job, emit, own, str(params["release"]))
    report["startup"] = startup_rows(vllm_startup_everywhere(folder))
    drift = measure_codes(job, emit, manifest, computed_by="vLLM")
    finish(job, emit, manifest, report, drift)


def _differences(folder: Folder, planned: Mapping[str, str]) -> Iterator[Problem]:
    """What the written file says otherwise than the plan."""
    found = java_properties(read_text(folder, PROPERTIES_NAME))
    for key, value in planned.items():
        if found.get(key) != value:
            yield Problem(
                code="verify.other-properties",
                message=f"{PROPERTIES_NAME} has `{key}={found.get(key)}`, the plan says"
                f" `{value}`",
                hint="build the artifact again",
            )
    if "option.quantize" in found:
        yield Problem(
            code="verify.other-properties",
            message=f"{PROPERTIES_NAME} has `option.quantize`: the image would quantize"
            " once more, or end",
            hint="build the artifact again, and leave the key out",
        )
