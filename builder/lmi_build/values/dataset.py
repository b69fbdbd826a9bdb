"""The name of a calibration data set, taken apart, with what its files are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.values.model import FileFact

PYTHON_DOCS = "builtin:python-docs"
BUILTIN_DATASETS = (PYTHON_DOCS,)

# How a file is read, by its ending; `.gz` may follow each but Parquet's.
_FORMATS: Mapping[str, str] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
# Those that messages name; the others are spellings of them.
DATASET_SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".parquet")
_PACKED = ".gz"

_HUB = re.compile(
    r"""(?x)
    hub:
    (?P<repo> [A-Za-z0-9][A-Za-z0-9._-]{0,95} / [A-Za-z0-9][A-Za-z0-9._-]{0,95})
    (?: @ (?P<revision> refs/(?:pr|convert)/[A-Za-z0-9_-]{1,64}
                      | [A-Za-z0-9][A-Za-z0-9._+-]{0,254}) )?
    (?: / (?P<path> [^\s@:\\][^\\]{0,511}) )?
    \Z
    """
)
_HUB_FORM = "hub:owner/name[@revision][/path]"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetName:
    """
    What `quantize.calibration.dataset` says.

    Args:
        kind: `builtin`, `hub`, `s3` or `file`.
        location: Repository, `s3://` address, path, or the whole built-in name.
        revision: Branch, tag or commit of a repository.
        path: File, folder or `*` pattern inside a repository; empty for all of it.
    """

    kind: str
    location: str
    revision: str = ""
    path: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFacts:
    """
    A data set pinned down: which bytes will be read.

    Args:
        kind: `hub`, `s3` or `file`.
        source: What the recipe said.
        location: What the calibration stage reads; never in a key.
        revision: Full commit on a hub, else empty.
        files: What is read, in this order, by the names it is stored under.
        names: The same files' names at the source.
        num_offered_files: Files that could have been taken.
        num_offered_bytes: Bytes of those.
    """

    kind: str
    source: str
    location: str
    revision: str
    files: tuple[FileFact, ...]
    names: tuple[str, ...]
    num_offered_files: int
    num_offered_bytes: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all files that are read."""
        return sum(fact.size for fact in self.files)


def data_format(name: str) -> str | None:
    """
    How a file is read: `text`, `jsonl`, `json`, `csv`, `parquet`, or None.

    Args:
        name: File name or path; case does not matter.
    """
    lowered = name.lower()
    inner = lowered.removesuffix(_PACKED)
    for suffix, found in _FORMATS.items():
        if inner.endswith(suffix):
            return None if found == "parquet" and inner != lowered else found
    return None


def data_suffix(name: str) -> str:
    """The ending that says how a file is read, in lower case, such as `.jsonl.gz`."""
    lowered = name.lower()
    inner = lowered.removesuffix(_PACKED)
    for suffix in _FORMATS:
        if inner.endswith(suffix):
            return suffix + (_PACKED if inner != lowered else "")
    raise ValueError(f"{name!r} is no data file")


def at_commit(text: str, commit: str) -> str:
    """
    The name of a hub's data set at a commit instead of a branch.

    Raises:
        ValueError: As for `parse_dataset`.
    """
    name = parse_dataset(text)
    if name.kind != "hub":
        return text
    return f"hub:{name.location}@{commit}{f'/{name.path}' if name.path else ''}"


def parse_dataset(text: str) -> DatasetName:
    """
    Take the name of a data set apart.

    Raises:
        ValueError: It has none of the forms; the text says which one it should have.
    """
    scheme = text.partition(":")[0] if ":" in text else ""
    if scheme == "builtin":
        if text not in BUILTIN_DATASETS:
            raise ValueError(f"write `{PYTHON_DOCS}`")
        return DatasetName(kind="builtin", location=text)
    if scheme == "hub":
        match = _HUB.match(text)
        path = (match["path"] or "") if match else ""
        parts = path.removesuffix("/").split("/")
        if match is None or (path and any(p in {"", ".", ".."} for p in parts)):
            raise ValueError(f"write `{_HUB_FORM}`")
        return DatasetName(
            kind="hub",
            location=match["repo"],
            revision=match["revision"] or "main",
            path=path.removesuffix("/"),
        )
    if scheme == "s3":
        return DatasetName(kind="s3", location=text)
    if "://" in text:
        raise ValueError(f"write a path, `{_HUB_FORM}` or an `s3://` file")
    return DatasetName(kind="file", location=text)
