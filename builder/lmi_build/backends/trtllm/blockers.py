"""Why an engine cannot be built on the machine that plans, said before anything is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lmi_build.backends.blockers import blocked_by, docker_blocker
from lmi_build.backends.trtllm.preflight import Needs, check_gpus, read_gpus
from lmi_build.catalog.releases import newest
from lmi_build.errors import LmiBuildError
from lmi_build.values.stage import Blocker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.trtllm.lowering import EnginePlan
    from lmi_build.backends.trtllm.target import Target
    from lmi_build.spi import Host

_UNTIL = "`--until checkpoint` builds what needs no GPU, `--rehearse` shows the rest"


def engine_blocker(
    plan: EnginePlan,
    target: Target,
    needs: Mapping[str, int],
    host: Host,
    *,
    image: str,
) -> Blocker | None:
    """
    The first thing that is missing here, or None.

    What costs time to find out, such as whether TensorRT-LLM can be imported, the
    stage itself looks at before it spends anything.

    Args:
        plan: The engine.
        target: For what.
        needs: What building it takes, of `engine_needs`.
        host: This machine.
        image: What a container would be started from; empty where there is none.
    """
    if host.runner == "container" and not image:
        return _image_blocker(plan)
    try:
        check_gpus(
            read_gpus(host.ask),
            Needs(
                trtllm=plan.trtllm,
                compute_capability=plan.compute_capability,
                target=target.instance.name,
                num_gpus=1,
                gpu_bytes=needs["gpu_bytes"],
                host_bytes=needs["host_bytes"],
                disk_bytes=needs["disk_bytes"],
            ),
        )
    except LmiBuildError as error:
        return blocked_by(error, otherwise=_UNTIL)
    if host.runner == "container":
        return docker_blocker(host, code="trtllm.no-docker")
    return _toolchain_blocker(plan, host)


def _image_blocker(plan: EnginePlan) -> Blocker:
    return Blocker(
        code="trtllm.no-image",
        message=f"no image of `{plan.release}` was published, which has TensorRT-LLM"
        f" {plan.trtllm}",
        hint="set `LMI_BUILD_IMAGE` to an image of yours with that version, or choose a"
        f" release with an image, such as `{newest().name}`",
    )


def _toolchain_blocker(plan: EnginePlan, host: Host) -> Blocker | None:
    found = host.versions(("tensorrt-llm",)).get("tensorrt-llm")
    if found == plan.trtllm:
        return None
    has = f"{found} is installed" if found else "it is not installed"
    python = sys.executable.rpartition("/")[2]
    return Blocker(
        code="trtllm.no-toolchain",
        message=f"the engine needs tensorrt-llm {plan.trtllm} beside this {python};"
        f" {has} here",
        hint="run lmi-build inside the release's image, or set"
        " `LMI_BUILD_RUNNER=container`",
    )
