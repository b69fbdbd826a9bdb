"""The compile stage without its GPU: what it would run, written down and marked so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lmi_build.backends.containers import (
    SHM_SIZE,
    WORK,
    Container,
    Mount,
    docker_run,
    environment,
)
from lmi_build.backends.trtllm.command import (
    convert_checkpoint,
    trtllm_build,
)
from lmi_build.backends.trtllm.conversion import CHECKPOINT, EXAMPLES, SOURCE
from lmi_build.backends.trtllm.engine_folder import REHEARSAL
from lmi_build.backends.trtllm.lowering import EnginePlan, expected_files
from lmi_build.catalog.trtllm_flags import build_flags
from lmi_build.events import StageNote

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.spi import Job

SCHEMA = "lmi-build/rehearsal/v1"
# Code of a note, which ends nothing.
_NOTE = "trtllm.rehearsal"


def run(job: Job, emit: Emit) -> None:
    """Fill `job.out` with the rehearsal of an engine."""
    plan = EnginePlan.from_json(job.params)
    document = rehearse(plan, image=str(job.settings.get("image", "")))
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    (job.out / REHEARSAL).write_text(text, "utf-8")
    emit(
        StageNote(
            stage=job.stage,
            level="warning",
            code=_NOTE,
            message=f"no engine was built: {REHEARSAL} has the commands of"
            f" TensorRT-LLM {plan.trtllm} for compute capability"
            f" {plan.compute_capability}",
        )
    )


def rehearse(plan: EnginePlan, *, image: str = "") -> dict[str, JSONValue]:
    """
    The commands of a build, by folders that have no place yet.

    Args:
        plan: The engine.
        image: Image of a container; empty leaves its command out.

    Returns:
        A document whose `rehearsal` is true. In `container`, `/ROLE` stands for the
        folder of that role, and ranks are built one GPU each.
    """
    commands = _commands(plan)
    document: dict[str, JSONValue] = {
        "schema": SCHEMA,
        "rehearsal": True,
        "release": plan.release,
        "trtllm": plan.trtllm,
        "device": plan.device,
        "compute_capability": plan.compute_capability,
        "bounds": dict(plan.bounds),
        "commands": [list(words) for words in commands],
        "environment": dict(environment(f"{WORK}/home")),
        "expected_files": list(expected_files(plan)),
    }
    if image:
        document["image"] = image
        document["shm_size"] = SHM_SIZE
        container = _container(plan, image)
        document["container"] = [list(docker_run(container, x)) for x in commands]
    return document


def _commands(plan: EnginePlan) -> list[list[str]]:
    flags = build_flags(plan.flags)
    made = [trtllm_build(build, flags, workers=plan.num_ranks) for build in plan.builds]
    if plan.conversion is None:
        return made
    return [convert_checkpoint(plan.conversion, workers=1), *made]


def _container(plan: EnginePlan, image: str) -> Container:
    read = [CHECKPOINT] if plan.conversion is None else [SOURCE, EXAMPLES]
    return Container(
        image=image,
        mounts=(
            Mount(source="/WORK", target=WORK, writable=True),
            *(Mount(source=f"/{x.upper()}", target=f"{WORK}/{x}") for x in read),
        ),
        user="UID:GID",
        gpus="all",
        environment=environment(f"{WORK}/home"),
    )
