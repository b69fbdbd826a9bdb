"""Facts of models on this machine: Hugging Face folders, GGUF files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid
from lmi_build.sources.assemble import assemble, distil
from lmi_build.sources.cache import cached_digest, file_identity, is_settled
from lmi_build.sources.gguf import read_gguf_header
from lmi_build.sources.gguf_facts import facts_of_gguf, summarise_gguf
from lmi_build.sources.selection import CONFIG, MODULES, SENTENCE_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.sources.cache import FactsCache
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import ModelSpec


class LocalFolder:
    """
    A folder on this machine.

    Args:
        root: The folder.
        source: How the recipe calls it.

    Raises:
        SourceInvalid: `source.not-found`, `source.unreadable` or `source.link-outside`.
    """

    def __init__(self, root: Path, *, source: str) -> None:
        self.root = root
        self.source = source
        self.sizes: Mapping[str, int] = _list_folder(root, source=source)

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        """Up to `count` bytes of a file."""
        return read_local(self.root / name, offset, count)


def read_local(path: Path, offset: int, count: int) -> bytes:
    """
    Up to `count` bytes of a file.

    Raises:
        SourceInvalid: `source.unreadable`.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            parts = []
            while count > 0 and (part := stream.read(count)):
                parts.append(part)
                count -= len(part)
            return b"".join(parts)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> SourceInvalid:
    """The error for a file of the model that the system does not give us."""
    return SourceInvalid(
        f"cannot read `{path}`: {error.strerror or error}",
        code="source.unreadable",
        hints=(f"check its permissions: `ls -l {path}`",),
    )


def _list_folder(root: Path, *, source: str) -> dict[str, int]:
    sizes = {}
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_symlink():
                _check_link(root, Path(entry.path), source=source)
            if entry.is_file():
                sizes[entry.name] = entry.stat().st_size
        if MODULES in sizes:
            sizes.update(_list_modules(root, entries, source=source))
    except OSError as error:
        raise unreadable(root, error) from error
    return sizes


def _list_modules(
    root: Path, entries: list[os.DirEntry[str]], *, source: str
) -> Iterator[tuple[str, int]]:
    """Settings of a sentence encoder's modules, one folder down."""
    for entry in entries:
        name = f"{entry.name}/{CONFIG}"
        path = root / name
        if SENTENCE_FILE.fullmatch(name) and path.is_file():
            if path.is_symlink():
                _check_link(root, path, source=source)
            yield name, path.stat().st_size


def _check_link(root: Path, link: Path, *, source: str) -> None:
    """
    Refuse a link that leaves the folder.

    A folder from a stranger could hold a link named `README.md` to a private file,
    which would then be published. The one layout of links that is common and safe is
    the hub cache's: `snapshots/<commit>/x` to `blobs/<digest>` of the same model.
    """
    target = link.resolve()
    real = root.resolve()
    allowed = [real]
    if real.parent.name == "snapshots":
        allowed.append(real.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise SourceInvalid(
            f"`{link.name}` in `{source}` is a link to `{target}`, outside of the"
            " folder",
            code="source.link-outside",
            hints=(
                (
                    "replace the link by its content: `cp --remove-destination"
                    f" {target} {link}`"
                ),
            ),
        )


def resolve_folder(
    root: Path, *, spec: ModelSpec, cache: FactsCache, hashed: bool = True
) -> ModelFacts:
    """
    Facts of a folder; files that have not changed are not read again.

    Args:
        root: The folder.
        spec: The recipe's `model` section.
        cache: What was learnt before.
        hashed: Whether weights are named by their content; else their digest is empty,
            and nothing can be planned from the facts.

    Raises:
        SourceInvalid: See `assemble`, `distil` and `LocalFolder`.
    """
    folder = LocalFolder(root, source=spec.source)

    def digest(name: str) -> str:
        if not hashed and name.endswith(".safetensors"):
            return ""
        try:
            return cached_digest(root / name, cache)
        except OSError as error:
            raise unreadable(root / name, error) from error

    return assemble(
        folder,
        distil(folder),
        kind="folder",
        location=str(root),
        revision="",
        spec=spec,
        digest=digest,
    )


def resolve_gguf(path: Path, *, spec: ModelSpec, cache: FactsCache) -> ModelFacts:
    """
    Facts of one GGUF file, cached whole while the file does not change.

    Raises:
        SourceInvalid: `source.bad-gguf` and what `summarise_gguf` raises.
    """
    try:
        summary = _gguf_summary(path, cache)
    except OSError as error:
        raise unreadable(path, error) from error
    return facts_of_gguf(summary, kind="gguf", location=str(path), spec=spec)


def _gguf_summary(path: Path, cache: FactsCache) -> dict[str, Any]:
    started = time.time()
    identity = file_identity(path)
    known = cache.get(["gguf", identity])
    if isinstance(known, dict):
        return known
    size = path.stat().st_size
    header = read_gguf_header(
        lambda offset, count: read_local(path, offset, count),
        size=size,
        name=path.name,
    )
    summary = summarise_gguf(header, file=path.name, size=size)
    summary["digest"] = cached_digest(path, cache)
    if file_identity(path) == identity and is_settled(path, since=started):
        cache.put(["gguf", identity], summary)
    return summary
