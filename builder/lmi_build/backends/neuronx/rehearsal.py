"""The compile stage without its toolchain: the call, written down and marked so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lmi_build.backends.containers import SHM_SIZE, WORK, Container, docker_run
from lmi_build.backends.neuronx.compile_plan import CompilePlan
from lmi_build.backends.neuronx.workplace import (
    CALL,
    DRIVER,
    RESULT,
    SOURCE,
    call_environment,
    mounts,
    request,
)
from lmi_build.events import StageNote

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.spi import Job

ENTRY = f"{__name__}:run"
SALT = 1
REHEARSAL = "rehearsal.json"
SCHEMA = "lmi-build/neuron-rehearsal/v1"
# Code of a note, which ends nothing.
_NOTE = "neuronx.rehearsal"


def run(job: Job, emit: Emit) -> None:
    """Fill `job.out` with the rehearsal of a compilation; needs no input."""
    plan = CompilePlan.from_json(job.params)
    image = str(job.settings.get("image", ""))
    devices = job.settings.get("num_devices", 0)
    document = rehearse(
        plan, image=image, num_devices=devices if isinstance(devices, int) else 0
    )
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    (job.out / REHEARSAL).write_text(text, "utf-8")
    emit(
        StageNote(
            stage=job.stage,
            level="warning",
            code=_NOTE,
            message=f"nothing was compiled: {REHEARSAL} has the call that would make"
            f" {plan.call['num_graphs']} graphs with `{plan.release}`",
        )
    )


def rehearse(
    plan: CompilePlan, *, image: str = "", num_devices: int = 0
) -> dict[str, JSONValue]:
    """
    What a build would do, by folders that have no place yet.

    Args:
        plan: The compilation.
        image: Image of a container; empty leaves its command out.
        num_devices: Neuron devices of the target, passed to the container one by one.

    Returns:
        A document whose `rehearsal` is true. In `container`, `/WORK` and `/SOURCE`
        stand for the folders of the build and of the model.
    """
    asked = request(plan, model=f"{WORK}/{SOURCE}", device=plan.device_needed)
    document: dict[str, JSONValue] = {
        "schema": SCHEMA,
        "rehearsal": True,
        "release": plan.release,
        "python": plan.python,
        "library_prefix": plan.prefix,
        "num_cores": plan.num_cores,
        "num_graphs": plan.call["num_graphs"],
        "num_neffs": plan.call["num_neffs"],
        "expected_files": list(plan.call["files"]),
        "expected_values": dict(plan.expected),
        "environment": dict(call_environment(plan, WORK)),
        "request": asked,
    }
    if image:
        document["image"] = image
        document["shm_size"] = SHM_SIZE
        container = Container(
            image=image,
            mounts=mounts("/WORK", "/SOURCE"),
            user="UID:GID",
            devices=tuple(f"/dev/neuron{index}" for index in range(num_devices)),
            environment=call_environment(plan, WORK),
        )
        words = [f"{WORK}/{DRIVER}", "build", f"{WORK}/{CALL}", f"{WORK}/{RESULT}"]
        document["container"] = list(docker_run(container, ["python3", *words]))
    return document
