"""A plan that was saved, read where it is to be built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build import registry
from lmi_build.errors import UsageInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan, Stage


def load_plan(file: Path, settings: Settings) -> Plan:
    """
    Read a plan that `plan --out` saved, and refuse it when a tool has moved since.

    The model's files are compared by their digests when they are fetched.

    Args:
        file: What `plan --out` wrote.
        settings: The user's environment.

    Raises:
        UsageInvalid: Not a plan, or made with other versions or by other providers.
    """
    from lmi_build.plan.saved import plan_from_json

    try:
        plan = plan_from_json(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageInvalid(
            f"{file} cannot be read: {error.strerror}",
            code="plan.unreadable",
            hints=("make it: `lmi-build plan RECIPE --out FILE`",),
        ) from error
    _refuse_moved(plan, file, settings)
    return plan


def _tools_here(stage: Stage, settings: Settings) -> Mapping[str, str | None]:
    """Versions of a stage's tools as a plan made here would have them."""
    from lmi_build.toolchains.environment import pinned_toolchain
    from lmi_build.toolchains.versions import installed_versions

    if not stage.toolchain:
        return installed_versions(stage.tools)
    pinned = pinned_toolchain(stage.toolchain, settings)
    return {name: pinned.versions.get(name) for name in stage.tools}


def _refuse_moved(plan: Plan, file: Path, settings: Settings) -> None:
    known = _worker_entries()
    for stage in plan.stages:
        if stage.entry not in known:
            raise UsageInvalid(
                f"{file}: {stage.name} would run `{stage.entry}`,"
                " which no installed provider offers",
                code="plan.foreign-entry",
                hints=("install the plugin, or plan again here",),
            )
        for name, now in _tools_here(stage, settings).items():
            planned = stage.tools[name]
            if (now or "absent") != planned:
                raise UsageInvalid(
                    f"{file}: {stage.name} was planned with {name} {planned},"
                    f" here is {now or 'none'}",
                    code="plan.moved",
                    hints=(f"install {name}=={planned}, or plan again",),
                )


def _worker_entries() -> set[str]:
    """Every entry that a plan made here could name."""
    from lmi_build.package.stage import ENTRY as PACKAGE
    from lmi_build.sources.dataset import DATASET_ENTRY as DATASET
    from lmi_build.sources.resolve import FETCH_ENTRY as FETCH
    from lmi_build.verify.stage import ENTRY as VERIFY

    found = {PACKAGE, FETCH, DATASET, VERIFY}
    for name in registry.names(registry.QUANTIZERS):
        found.add(registry.quantizer(name).info.entry)
    for name in registry.names(registry.BACKENDS):
        info = registry.backend(name).info
        found |= {info.entry, *info.further_entries}
    return found
