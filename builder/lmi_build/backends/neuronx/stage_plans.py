"""The stages of a Neuron build: one that compiles, or its rehearsal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.blockers import neuron_blocker, neuron_needs
from lmi_build.backends.neuronx.compile_worker import ENTRY as COMPILE_ENTRY
from lmi_build.backends.neuronx.compile_worker import SALT as COMPILE_SALT
from lmi_build.backends.neuronx.rehearsal import ENTRY as REHEARSAL_ENTRY
from lmi_build.backends.neuronx.topology import devices_needed
from lmi_build.catalog.images import image_uri
from lmi_build.spi import BackendStage
from lmi_build.values.stage import Note

if TYPE_CHECKING:
    from lmi_build.backends.neuronx.loaders import Loader, Request
    from lmi_build.backends.neuronx.target import Target
    from lmi_build.spi import Host

# Any region's registry has the same image; this one has every release.
_REGION = "us-east-1"


def compile_stage(request: Request, loader: Loader, host: Host) -> BackendStage:
    """
    The graphs, compiled by the release's toolchain, or their rehearsal.

    Args:
        request: What is asked for; its loader found no problem.
        loader: The library that compiles.
        host: This machine.
    """
    target = request.target
    plan = loader.plan(request)
    estimate = loader.estimate(request)
    needs = neuron_needs(
        plan,
        target.instance.name,
        host_bytes=estimate.ram_bytes,
        disk_bytes=estimate.disk_bytes + estimate.scratch_bytes,
    )
    platform = f"linux-x86_64-{target.family}"
    return BackendStage(
        kind="compile",
        entry=REHEARSAL_ENTRY if host.rehearse else COMPILE_ENTRY,
        salt=COMPILE_SALT,
        params=plan.to_json(),
        inputs={"source": "fetch"},
        tools=dict(plan.versions),
        estimate=estimate,
        settings={
            "runner": host.runner,
            "image": compile_image(target, host),
            "cache": f"{host.places['cache']}/neuron-graphs"
            if "cache" in host.places
            else "",
            "target": target.instance.name,
            "num_devices": len(devices_needed(target.instance, plan.num_cores).paths),
            "host_bytes": needs.host_bytes,
            "disk_bytes": needs.disk_bytes,
        },
        blocker=None if host.rehearse else neuron_blocker(plan, needs, host),
        notes=(*loader.notes(request), *_release_notes(target)),
        # A rehearsal must never be taken for the graphs: it has another key.
        platform=f"{platform}-rehearsal" if host.rehearse else platform,
    )


def compile_image(target: Target, host: Host) -> str:
    """Image of a container: the user's, else the release's own; empty without one."""
    given = host.places.get("image")
    if given:
        return given
    release = target.release
    if not release.tag:
        return ""
    return image_uri(release.tag, _REGION, repository=release.repository)


def _release_notes(target: Target) -> tuple[Note, ...]:
    """What the release's makers said about it."""
    release = target.release
    found = []
    if not release.published:
        found.append(
            f"no image of `{release.name}` was published; compile in an image of your"
            " own, named by `LMI_BUILD_IMAGE`"
        )
    if release.end_of_life:
        found.append(f"`{release.name}`: {release.end_of_life}")
    return tuple(
        Note(level="warning", code="neuronx.release", message=message)
        for message in found
    )
