"""Versions of installed packages, read from metadata, without importing them."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from lmi_build.values.stage import Blocker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# What a missing package is called to a user: the extra that brings it.
_EXTRAS: Mapping[str, str] = {
    "torch": "cpu",
    "transformers": "cpu",
    "safetensors": "cpu",
    "tokenizers": "cpu",
    "numpy": "cpu",
    "gguf": "cpu",
    "onnxruntime": "cpu",
    "onnxruntime-genai": "cpu",
    "onnx": "cpu",
    "onnx-ir": "cpu",
    "starlette": "cpu",
    "uvicorn": "cpu",
}


def installed_versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Version of each package, or None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in sorted(set(distributions)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def missing_blocker(versions: Mapping[str, str | None]) -> Blocker | None:
    """What stops a stage whose packages are not all here, or None."""
    missing = sorted(name for name, version in versions.items() if version is None)
    if not missing:
        return None
    extras = sorted({_EXTRAS.get(name, name) for name in missing})
    return Blocker(
        code="tool.missing",
        message=f"needs {', '.join(missing)}, not installed in this environment",
        hint=f"run `pip install 'lmi-build[{','.join(extras)}]'`",
    )
