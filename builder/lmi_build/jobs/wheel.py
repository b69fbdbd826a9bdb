"""
The package's own wheel, made from the package that is running.

A job installs exactly the code that planned it, without an index and without build
tools. Equal files give equal bytes on every machine: members are sorted, carry one
time and one mode, and are stored as they are, since compressors differ between
machines; the whole is a few MB.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import lmi_build
from lmi_build.digest import Digest, digest_bytes
from lmi_build.errors import ToolMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

DISTRIBUTION = "lmi-build"
PACKAGE = "lmi_build"
# The earliest time that a zip file can name.
_TIME = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_PLAIN_FILE = 0o100644
_BYTECODE = (".pyc", ".pyo")
# What editors and merges leave beside a file; an editable install shows them.
_LEFT_BEHIND = ("~", ".orig", ".rej", ".swp", ".tmp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """
    A wheel in memory.

    Args:
        name: Its file name, which says the version.
        data: Its bytes.
    """

    name: str
    data: bytes

    @property
    def digest(self) -> Digest:
        """Its name by content."""
        return digest_bytes(self.data)


def make_wheel() -> Wheel:
    """
    Pack the running package, installed as files or editable.

    Raises:
        ToolMissing: `job.no-metadata`: it runs from a folder that was never
            installed, or that was installed as another version, so that its
            providers could not be found in a job.
    """
    version, info_files = _metadata()
    info = f"{PACKAGE}-{version}.dist-info"
    root = Path(lmi_build.__file__).parent
    members = {
        f"{PACKAGE}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in package_files(root)
    }
    members |= {f"{info}/{name}": data for name, data in info_files.items()}
    members[f"{info}/WHEEL"] = _wheel_text(version).encode()
    return Wheel(
        name=f"{PACKAGE}-{version}-py3-none-any.whl",
        data=_pack(members, record=f"{info}/RECORD"),
    )


def package_files(root: Path) -> Iterator[Path]:
    """Files of the package below a folder, sorted; no bytecode, nothing hidden."""
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") or part == "__pycache__" for part in parts):
            continue
        if path.is_file() and not path.name.endswith((*_BYTECODE, *_LEFT_BEHIND)):
            yield path


def _metadata() -> tuple[str, dict[str, bytes]]:
    """The version, and what the installation says of the package."""
    again = "install it: `pip install .` or `pip install --editable .`"
    try:
        found = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise ToolMissing(
            f"{DISTRIBUTION} runs without being installed; a job needs its metadata",
            code="job.no-metadata",
            hints=(again,),
        ) from error
    if found.version != lmi_build.__version__:
        raise ToolMissing(
            f"{DISTRIBUTION} was installed as {found.version},"
            f" but {lmi_build.__version__} is running",
            code="job.no-metadata",
            hints=(again,),
        )
    # An `egg-info` folder beside the sources has the first under another name.
    core = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    files = {"METADATA": core.encode()}
    names = ["entry_points.txt"]
    names += [f"licenses/{name}" for name in found.metadata.get_all("License-File", [])]
    for name in names:
        text = found.read_text(name)
        if text is not None:
            files[name] = text.encode()
    return found.version, files


def _wheel_text(version: str) -> str:
    return (
        f"Wheel-Version: 1.0\nGenerator: {DISTRIBUTION} ({version})\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n"
    )


def _pack(members: dict[str, bytes], *, record: str) -> bytes:
    rows = [
        f"{_quoted(path)},sha256={_sha256(data)},{len(data)}\n"
        for path, data in sorted(members.items())
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, data in sorted(members.items()):
            _add(archive, path, data)
        _add(archive, record, "".join([*rows, f"{record},,\n"]).encode())
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, path: str, data: bytes) -> None:
    info = zipfile.ZipInfo(path, date_time=_TIME)
    info.create_system = _UNIX
    info.external_attr = _PLAIN_FILE << 16
    archive.writestr(info, data)


def _quoted(path: str) -> str:
    return f'"{path}"' if "," in path else path


def _sha256(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
