"""A stage of a plan with the machine that a job takes for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmi_build.digest import Digest
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.stage import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """
    One stage with its machine.

    Args:
        stage: Of the plan.
        key: Its key.
        recipe: That tells it.
        kind: Of job.
        instance: Instance type, or `auto` for a host without a device.
        image: URI.
        fixed: Where the recipe or its release decides the image, the dotted path that
            says so; empty where any image with the stage's tools would do.
        reason: Why this machine, in words.
        instance_path: Dotted path of what says the instance.
    """

    stage: Stage
    key: Digest
    recipe: Recipe
    kind: str
    instance: str
    image: str
    fixed: str
    reason: str
    instance_path: str

    @property
    def machine(self) -> tuple[str, str, str]:
        """What a job has one of."""
        return self.kind, self.instance, self.image
