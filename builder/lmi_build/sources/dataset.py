"""
Pin a calibration data set down: its name in, the files that will be read out.

Nothing of it is fetched here; a hub is asked for its list of files, S3 for one head, a
local file is hashed once. What was learnt is kept, so that offline works as it does
for models.
"""

from __future__ import annotations

from errno import EINVAL
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.errors import RemoteFailed, SourceInvalid, Unsupported
from lmi_build.sources.cache import FactsCache, cached_digest
from lmi_build.sources.dataset_choice import byte_budget, choose_files
from lmi_build.sources.selection import check_name
from lmi_build.text import join_words
from lmi_build.units import format_bytes
from lmi_build.values.dataset import (
    DATASET_SUFFIXES,
    PYTHON_DOCS,
    DatasetFacts,
    data_format,
    data_suffix,
    parse_dataset,
)
from lmi_build.values.model import FileFact
from lmi_build.values.stage import Estimate, Note

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue
    from lmi_build.spi import Params
    from lmi_build.values.dataset import DatasetName
    from lmi_build.values.recipe import CalibrationSpec
    from lmi_build.values.settings import Settings

DATASET_ENTRY = "lmi_build.sources.dataset_fetch:run"
# Raised when the stage writes other bytes for the same parameters.
DATASET_SALT = 1
# Measured: a worker that copies or downloads.
_RAM_BYTES = 80 << 20
_MAX_SHOWN = 3


def resolve_dataset(
    spec: CalibrationSpec, *, settings: Settings, base: Path
) -> DatasetFacts | None:
    """
    Learn which bytes a `calibration` section reads.

    Args:
        spec: Of the recipe.
        settings: Cache folder, endpoint, token, whether the network may be used.
        base: Folder of the recipe, for relative paths.

    Returns:
        None for a built-in text.

    Raises:
        Unsupported: `calibration.dataset`.
        SourceInvalid: The data set is missing, holds no data files or is refused.
        RemoteFailed: The hub or S3 refused or vanished.
    """
    try:
        name = parse_dataset(spec.dataset)
    except ValueError as error:
        raise Unsupported(
            f"calibration data set `{spec.dataset}` is of a kind not offered",
            code="calibration.dataset",
            hints=(str(error),),
        ) from error
    if name.kind == "builtin":
        return None
    cache = FactsCache(settings.cache_dir / "facts")
    if name.kind == "hub":
        budget = byte_budget(spec.num_samples * spec.max_seq_len)
        return _resolve_hub(name, spec, budget, settings=settings, cache=cache)
    if data_format(name.location) is None:
        raise Unsupported(
            f"calibration file `{spec.dataset}` is of no format that is read",
            code="calibration.dataset",
            hints=(f"use `{PYTHON_DOCS}` or end it in {join_words(DATASET_SUFFIXES)}",),
        )
    if name.kind == "s3":
        return _resolve_s3(name, spec, settings=settings, cache=cache)
    return _resolve_file(base / Path(name.location).expanduser(), spec, cache)


def _expect_file(path: Path) -> None:
    """Refuse a folder, and a pipe, which would be read for ever."""
    if path.exists() and not path.is_file():
        raise OSError(EINVAL, "it is not a file")


def _resolve_file(path: Path, spec: CalibrationSpec, cache: FactsCache) -> DatasetFacts:
    try:
        _expect_file(path)
        digest = cached_digest(path, cache)
        size = path.stat().st_size
    except OSError as error:
        raise SourceInvalid(
            f"calibration file `{path}` cannot be read: {error.strerror or error}",
            code="calibration.unreadable",
            hints=("correct the path; a relative one starts at the recipe's folder",),
        ) from error
    return _single(spec, "file", str(path), path.name, digest=digest, size=size)


def _single(
    spec: CalibrationSpec,
    kind: str,
    location: str,
    name: str,
    *,
    digest: str,
    size: int,
) -> DatasetFacts:
    """One file, stored by its format: its own name and place enter no key."""
    stored = FileFact(path=f"data{data_suffix(name)}", size=size, digest=digest)
    return DatasetFacts(
        kind=kind,
        source=spec.dataset,
        location=location,
        revision="",
        files=(stored,),
        names=(name,),
        num_offered_files=1,
        num_offered_bytes=size,
    )


def _resolve_s3(
    name: DatasetName, spec: CalibrationSpec, *, settings: Settings, cache: FactsCache
) -> DatasetFacts:
    from lmi_build.remote.aws import s3_endpoint
    from lmi_build.sources.hub import retry
    from lmi_build.sources.s3 import split_url

    bucket, key = split_url(name.location)
    last: JSONValue = ["s3-data-last", s3_endpoint(settings) or "", name.location]
    record = cache.get(last) if settings.offline else None
    if record is None:
        if settings.offline:
            raise _offline(spec, "S3")
        from lmi_build.sources.s3_client import S3Client

        client = S3Client(bucket, settings=settings)
        size, _, digest = retry(
            lambda: client.head(key), endpoint=client.endpoint or f"s3://{bucket}"
        )
        record = {"size": size, "digest": digest}
        cache.put(last, record)
    folder, _, base = name.location.rpartition("/")
    check_name(base, source=spec.dataset)
    return _single(
        spec, "s3", folder, base, digest=record["digest"], size=record["size"]
    )


def _resolve_hub(
    name: DatasetName,
    spec: CalibrationSpec,
    budget: int,
    *,
    settings: Settings,
    cache: FactsCache,
) -> DatasetFacts:
    record = _hub_record(name, spec, settings=settings, cache=cache)
    sizes: dict[str, int] = record["sizes"]
    taken, offered = choose_files(sizes, name.path, repo=name.location, budget=budget)
    return DatasetFacts(
        kind="hub",
        source=spec.dataset,
        location=name.location,
        revision=record["commit"],
        files=tuple(
            FileFact(
                path=check_name(path, source=spec.dataset),
                size=sizes[path],
                digest=record["digests"][path],
            )
            for path in taken
        ),
        names=taken,
        num_offered_files=len(offered),
        num_offered_bytes=sum(sizes[path] for path in offered),
    )


def _hub_record(
    name: DatasetName, spec: CalibrationSpec, *, settings: Settings, cache: FactsCache
) -> dict[str, Any]:
    """Commit, sizes and digests; asked for unless a commit that is known says it."""
    from lmi_build.sources.hub import is_commit, listed_files, named_commit, retry

    endpoint, repo = settings.hf_endpoint, name.location
    branch: JSONValue = ["hub-data-branch", endpoint, repo, name.revision]
    commit = name.revision if is_commit(name.revision) else None
    if commit is None and settings.offline:
        commit = cache.get(branch)
    if commit is not None:
        known = cache.get(["hub-data-commit", endpoint, repo, commit])
        if isinstance(known, dict):
            return known
    if settings.offline:
        raise _offline(spec, "the hub")
    from lmi_build.sources.hub_http import HubRemote

    remote = HubRemote(
        repo,
        revision=name.revision,
        endpoint=endpoint,
        token=settings.hf_token,
        repo_type="dataset",
    )
    info = retry(remote.info, endpoint=endpoint)
    commit = named_commit(info, repo, endpoint)
    sizes, digests = listed_files(info, repo, endpoint)
    record: dict[str, Any] = {"commit": commit, "sizes": sizes, "digests": digests}
    cache.put(["hub-data-commit", endpoint, repo, commit], record)
    cache.put(branch, commit)
    return record


def _offline(spec: CalibrationSpec, whom: str) -> RemoteFailed:
    return RemoteFailed(
        f"calibration data set `{spec.dataset}` was never resolved on this machine, and"
        f" offline mode forbids asking {whom}",
        code="source.offline",
        hints=("run `lmi-build plan` once without `--offline`, or name a local file",),
    )


def dataset_stage_params(facts: DatasetFacts) -> Params:
    """What decides every byte that the calibration stage keeps; goes into the key."""
    files: list[JSONValue] = [[f.path, f.digest, f.size] for f in facts.files]
    return {"files": files}


def dataset_settings(facts: DatasetFacts, settings: Settings) -> Params:
    """Where the stage finds those files; changes no byte."""
    return {
        "kind": facts.kind,
        "source": facts.source,
        "location": facts.location,
        "revision": facts.revision,
        "names": list(facts.names),
        "endpoint": settings.hf_endpoint,
        "offline": settings.offline,
    }


def dataset_secrets(facts: DatasetFacts) -> tuple[str, ...]:
    """The groups of secrets that the stage may see."""
    return {"hub": ("hub",), "s3": ("aws",)}.get(facts.kind, ())


def dataset_notes(facts: DatasetFacts) -> tuple[Note, ...]:
    """Which files of a repository are taken, when that was chosen here."""
    if facts.kind != "hub":
        return ()
    shown = ", ".join(f"`{name}`" for name in facts.names[:_MAX_SHOWN])
    more = len(facts.names) - _MAX_SHOWN
    return (
        Note(
            level="info",
            code="calibration.files",
            message=f"calibrates on {shown}{f' and {more} more' if more > 0 else ''}"
            f" ({format_bytes(facts.num_bytes)}) of the"
            f" {facts.num_offered_files} data files"
            f" ({format_bytes(facts.num_offered_bytes)}) that"
            f" `{facts.source}` offers at {facts.revision[:12]}",
        ),
    )


def estimate_dataset(facts: DatasetFacts) -> Estimate:
    """What the stage will cost."""
    return Estimate(
        download_bytes=0 if facts.kind == "file" else facts.num_bytes,
        disk_bytes=facts.num_bytes,
        ram_bytes=_RAM_BYTES,
    )
