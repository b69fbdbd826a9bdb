"""
What machine each stage of a plan needs.

A stage that builds for a device says so itself: its settings name the `target` that
will serve, and its parameters the release that compiles and whether a device is needed
for it. All other stages run on any host with the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.catalog.instances import instances

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.catalog.instances import Instance
    from lmi_build.digest import Digest
    from lmi_build.values.recipe import JobSpec, Recipe
    from lmi_build.values.stage import Plan, Stage

NO_DEVICE, GPU, NEURON = "none", "gpu", "neuron"
AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """
    What one stage asks of its machine.

    Args:
        accelerator: `gpu`, `neuron` or `none`.
        target: Instance that its result is for; empty for any.
        num_cores: Parts of the target's devices that it loads a model on.
        release: Row of the catalogue whose image compiles; empty for none.
        instance: What the recipe says it runs on; `auto` for what fits.
        image: What the recipe says it runs in; empty for the catalogue's.
        instance_path: Dotted path of what says the instance, for messages.
        image_path: The same of the image.
    """

    accelerator: str
    target: str
    num_cores: int
    release: str
    instance: str
    image: str
    instance_path: str
    image_path: str


def owners(plan: Plan, recipes: Mapping[str, Recipe]) -> dict[Digest, Recipe]:
    """
    The recipe that each stage is told by; of several, the first.

    Args:
        plan: Every stage.
        recipes: By the name of their artifact.
    """
    found: dict[Digest, Recipe] = {}
    for artifact in plan.artifacts:
        for key in artifact.stages.values():
            found.setdefault(key, recipes[artifact.name])
    return found


def is_local(stage: Stage, spec: JobSpec) -> bool:
    """
    Whether a stage runs on the submitting machine.

    A source that lies there, or any source where jobs have no network. A stage that
    reads from afar is one that lists secrets of a hub or of S3.
    """
    if stage.kind not in {"fetch", "calibration"}:
        return False
    return not stage.secrets or spec.network_isolation


def need_of(stage: Stage, spec: JobSpec) -> Need:
    """
    What a stage asks of its machine.

    Args:
        stage: Of a plan.
        spec: The job section of its recipe.
    """
    target = stage.job.get("target") if stage.kind == "compile" else None
    machine = instances().get(target) if isinstance(target, str) else None
    device = machine is not None and bool(stage.params.get("device_needed", True))
    release = stage.params.get("release") if machine is not None else None
    own = stage.kind in spec.instances
    own_image = stage.kind in spec.images
    return Need(
        accelerator=machine.accelerator if machine and device else NO_DEVICE,
        target=machine.name if machine and device else "",
        num_cores=_count(stage, "num_cores") if device else 0,
        release=release if isinstance(release, str) else "",
        instance=spec.instances.get(stage.kind, spec.instance),
        image=spec.images.get(stage.kind, spec.image or ""),
        instance_path=f"job.instances.{stage.kind}" if own else "job.instance",
        image_path=f"job.images.{stage.kind}" if own_image else "job.image",
    )


def _count(stage: Stage, name: str) -> int:
    value = stage.params.get(name)
    return value if isinstance(value, int) else 0


def device_words(machine: Instance) -> str:
    """A machine's devices for messages: `4 A10G (compute capability 8.6)`."""
    if not machine.num_devices:
        return "no device"
    more = machine.compute_capability
    suffix = f" (compute capability {more})" if more else ""
    return f"{machine.num_devices} {machine.device}{suffix}"
