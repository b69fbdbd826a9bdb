"""Versions of installed packages, read from metadata, without importing them."""

from __future__ import annotations

from functools import cache
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
    "jinja2": "cpu",
    "pyarrow": "parquet",
}


def installed_versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Version of each package, or None where it is not installed."""
    return {name: _version(name) for name in sorted(set(distributions))}


@cache
def _version(name: str) -> str | None:
    """
    The version that a package's metadata states.

    Only the header line is looked for: parsing the whole file, as
    `importlib.metadata.version` does, costs milliseconds for each package.
    """
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    for line in (found.read_text("METADATA") or "").splitlines():
        if line.startswith("Version: "):
            return line.removeprefix("Version: ").strip()
        if not line:
            break
    return found.version


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
