"""
Build servable, compiled LLM artifacts for AWS LMI containers from a recipe.

The library's names are found here and imported when they are first used, so that
`import lmi_build` costs nothing in a worker.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lmi_build.api import build, load_recipe, make_plan, resolve, write_artifact
    from lmi_build.artifacts import (
        access,
        fetch_artifact,
        inspect_artifact,
        publish,
        verify_artifact,
    )
    from lmi_build.errors import LmiBuildError
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.result import BuildResult
    from lmi_build.values.settings import Settings, settings_from_environ
    from lmi_build.values.stage import Plan

__all__ = [
    "BuildResult",
    "LmiBuildError",
    "Plan",
    "Recipe",
    "Settings",
    "access",
    "build",
    "fetch_artifact",
    "inspect_artifact",
    "load_recipe",
    "make_plan",
    "publish",
    "resolve",
    "settings_from_environ",
    "verify_artifact",
    "write_artifact",
]

_HOMES = {
    "lmi_build.api": (
        "build",
        "load_recipe",
        "make_plan",
        "resolve",
        "write_artifact",
    ),
    "lmi_build.artifacts": (
        "access",
        "fetch_artifact",
        "inspect_artifact",
        "publish",
        "verify_artifact",
    ),
    "lmi_build.errors": ("LmiBuildError",),
    "lmi_build.values.recipe": ("Recipe",),
    "lmi_build.values.result": ("BuildResult",),
    "lmi_build.values.settings": ("Settings", "settings_from_environ"),
    "lmi_build.values.stage": ("Plan",),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
