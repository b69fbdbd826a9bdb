"""
Facts of a model on a hub: its commit, its files' digests, its headers.

What a commit holds never changes, so it is cached by (endpoint, repository, commit)
and a recipe that pins a full commit needs no network at all. A branch is looked up
again each time, except offline.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, TypeVar

from lmi_build.errors import RemoteFailed, SourceInvalid
from lmi_build.sources.assemble import assemble, distil
from lmi_build.sources.download import Dropped
from lmi_build.sources.hub_http import HubRemote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.sources.cache import FactsCache
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import ModelSpec
    from lmi_build.values.settings import Settings

_T = TypeVar("_T")

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_ATTEMPTS = 4
_FIRST_WAIT_SECONDS = 0.25


class HubFolder:
    """
    A repository at a commit, as a folder that can be read in parts.

    Args:
        remote: Bound to the commit.
        sizes: Bytes of every file.
    """

    def __init__(self, remote: HubRemote, sizes: Mapping[str, int]) -> None:
        self.source = remote.source
        self.sizes = sizes
        self._remote = remote

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        """Up to `count` bytes of a file."""
        count = min(count, self.sizes[name] - offset)
        if count <= 0:
            return b""
        return retry(
            lambda: self._remote.read(name, offset, count),
            endpoint=self._remote.endpoint,
        )


def retry(
    action: Callable[[], _T],
    *,
    endpoint: str,
    first_wait_seconds: float = _FIRST_WAIT_SECONDS,
) -> _T:
    """
    Try a small request a few times, waiting longer each time.

    Raises:
        RemoteFailed: `source.unreachable`.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except Dropped as error:
            reason = str(error)
        if attempt + 1 < _ATTEMPTS:
            time.sleep(first_wait_seconds * 2**attempt)
    raise RemoteFailed(
        f"{endpoint} cannot be reached: {reason} ({_ATTEMPTS} attempts)",
        code="source.unreachable",
        hints=(
            (
                "check the connection, the proxy variables and the endpoint"
                " (HF_ENDPOINT, AWS_ENDPOINT_URL); with `--offline` what was resolved"
                " before is used"
            ),
        ),
    )


def resolve_hub(
    spec: ModelSpec, *, settings: Settings, cache: FactsCache
) -> ModelFacts:
    """
    Facts of a repository.

    Raises:
        SourceInvalid: The repository lacks something or is refused.
        RemoteFailed: The hub refused or vanished.
    """
    endpoint = settings.hf_endpoint
    commit = spec.revision if _COMMIT.match(spec.revision) else None
    record = None
    if commit is None and settings.offline:
        commit = _remembered_commit(spec, endpoint, cache)
    if commit is not None:
        record = cache.get(_commit_key(endpoint, spec.source, commit))
    if record is None:
        if settings.offline:
            raise _offline(spec)
        record = _ask(spec, settings=settings, cache=cache)
    remote = HubRemote(
        spec.source,
        revision=record["commit"],
        endpoint=endpoint,
        token=settings.hf_token,
    )
    return assemble(
        HubFolder(remote, record["sizes"]),
        record["distilled"],
        kind="hub",
        location=spec.source,
        revision=record["commit"],
        spec=spec,
        digest=lambda name: str(record["digests"][name]),
    )


def _commit_key(endpoint: str, repo: str, commit: str) -> JSONValue:
    return ["hub-commit", endpoint, repo, commit]


def _branch_key(endpoint: str, repo: str, revision: str) -> JSONValue:
    return ["hub-branch", endpoint, repo, revision]


def _remembered_commit(spec: ModelSpec, endpoint: str, cache: FactsCache) -> str | None:
    commit = cache.get(_branch_key(endpoint, spec.source, spec.revision))
    return commit if isinstance(commit, str) else None


def _offline(spec: ModelSpec) -> RemoteFailed:
    return RemoteFailed(
        f"`{spec.source}` at `{spec.revision}` was never resolved on this machine, and"
        " offline mode forbids asking the hub",
        code="source.offline",
        hints=(
            (
                "run `lmi-build plan` once without `--offline`, or name a local folder"
                " in `model.source`"
            ),
        ),
    )


def _ask(spec: ModelSpec, *, settings: Settings, cache: FactsCache) -> dict[str, Any]:
    """Resolve a revision over the network; keep what was learnt."""
    endpoint = settings.hf_endpoint
    asked = HubRemote(
        spec.source,
        revision=spec.revision,
        endpoint=endpoint,
        token=settings.hf_token,
    )
    info = retry(asked.info, endpoint=endpoint)
    commit = named_commit(info, spec.source, endpoint)
    key = _commit_key(endpoint, spec.source, commit)
    record = cache.get(key)
    if record is None:
        record = _read_commit(info, commit, spec, settings=settings)
        cache.put(key, record)
    cache.put(_branch_key(endpoint, spec.source, spec.revision), commit)
    return dict(record)


def _read_commit(
    info: Any, commit: str, spec: ModelSpec, *, settings: Settings
) -> dict[str, Any]:
    remote = HubRemote(
        spec.source,
        revision=commit,
        endpoint=settings.hf_endpoint,
        token=settings.hf_token,
    )
    sizes, digests = listed_files(info, spec.source, settings.hf_endpoint)
    return {
        "commit": commit,
        "sizes": sizes,
        "digests": digests,
        "distilled": distil(HubFolder(remote, sizes)),
    }


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit, which can never move."""
    return _COMMIT.match(revision) is not None


def named_commit(info: Any, repo: str, endpoint: str) -> str:
    """
    The commit that the hub resolved a revision to.

    Raises:
        SourceInvalid: `source.bad-answer`.
    """
    commit = str(info.sha)
    if not _COMMIT.match(commit):
        raise SourceInvalid(
            f"{endpoint} names commit {commit!r} for `{repo}`, not 40"
            " hexadecimal digits",
            code="source.bad-answer",
            hints=("check that HF_ENDPOINT is a model hub",),
        )
    return commit


def listed_files(
    info: Any, repo: str, endpoint: str
) -> tuple[dict[str, int], dict[str, str]]:
    """
    Bytes and digests of every file, by its path in the repository.

    Raises:
        SourceInvalid: `source.bad-answer`.
    """
    sizes: dict[str, int] = {}
    digests: dict[str, str] = {}
    for sibling in info.siblings or ():
        name, lfs = sibling.rfilename, sibling.lfs
        size = lfs.size if lfs is not None else sibling.size
        digest = (
            f"sha256:{lfs.sha256}" if lfs is not None else f"git-sha1:{sibling.blob_id}"
        )
        if not isinstance(size, int) or not re.fullmatch(
            r"sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40}", digest
        ):
            raise SourceInvalid(
                f"{endpoint} tells neither size nor digest of `{name}` in `{repo}`",
                code="source.bad-answer",
                hints=("check that HF_ENDPOINT is a model hub",),
            )
        sizes[name], digests[name] = size, digest
    return sizes, digests
