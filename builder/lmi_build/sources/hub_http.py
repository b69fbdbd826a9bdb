"""
Talk HTTP to a model hub: one client, one place where its answers become our errors.

`huggingface_hub` gives the session (proxies, certificates, retries of its own on
redirects), the URLs and the meaning of error answers. Files are read with our own
range requests: since version 1 `hf_hub_download` throws a partial file away when its
process ends, and a killed build must go on where it stopped.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from lmi_build.errors import LmiBuildError, RemoteFailed, SourceInvalid
from lmi_build.sources.download import Dropped

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from lmi_build.values.model import FileFact

_TIMEOUT_SECONDS = 30.0
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_AGENT = "lmi-build"
_PARTIAL, _UNAUTHORIZED = 206, 401


class HubRemote:
    """
    One repository at one commit.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit.
        endpoint: Base URL of the hub.
        token: The user's token; never from a file, so that a build depends on what it
            was given.
        repo_type: `model` or `dataset`.
    """

    def __init__(
        self,
        repo: str,
        *,
        revision: str,
        endpoint: str,
        token: str | None,
        repo_type: str = "model",
    ) -> None:
        self.source = repo
        self.revision = revision
        self.endpoint = endpoint
        self._token = token
        self._repo_type = repo_type
        place = "datasets/" if repo_type == "dataset" else ""
        self._page = f"{endpoint}/{place}{repo}"

    def info(self) -> Any:
        """
        What the hub says about the revision, with sizes and digests of its files.

        Raises:
            Dropped: Worth another try.
            LmiBuildError: See `_explain`.
        """
        from huggingface_hub import HfApi

        api = HfApi(
            endpoint=self.endpoint, token=self._token or False, library_name=_AGENT
        )
        with self._errors():
            return api.repo_info(
                self.source,
                repo_type=self._repo_type,
                revision=self.revision,
                files_metadata=True,
                timeout=_TIMEOUT_SECONDS,
            )

    def stream(self, file: FileFact, offset: int) -> tuple[int, Iterator[bytes]]:
        """A file's bytes from `offset` on; see `download.Remote`."""
        return self._open(file.path, offset, None)

    def read(self, name: str, offset: int, count: int) -> bytes:
        """
        Part of a file.

        Raises:
            Dropped: Worth another try.
            LmiBuildError: See `_explain`.
        """
        start, chunks = self._open(name, offset, count)
        skip = offset - start
        data = bytearray()
        with closing(chunks):
            for chunk in chunks:
                data += chunk
                if len(data) >= skip + count:
                    break
        return bytes(data[skip : skip + count])

    def _open(
        self, name: str, offset: int, count: int | None
    ) -> tuple[int, Generator[bytes, None, None]]:
        """Where an answer really starts, and its bytes."""
        from huggingface_hub import hf_hub_url

        # Exported lazily, which mypy does not see.
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(
            self.source,
            name,
            repo_type=self._repo_type,
            revision=self.revision,
            endpoint=self.endpoint,
        )
        headers = build_hf_headers(token=self._token or False, library_name=_AGENT)
        # A compressed answer has other offsets than the file.
        headers["Accept-Encoding"] = "identity"
        last = "" if count is None else str(offset + count - 1)
        if offset or last:
            headers["Range"] = f"bytes={offset}-{last}"
        with ExitStack() as stack, self._errors(name):
            response = stack.enter_context(
                get_session().stream(
                    "GET", url, headers=headers, timeout=_TIMEOUT_SECONDS
                )
            )
            hf_raise_for_status(response)
            start = offset if response.status_code == _PARTIAL else 0
            # From here on the generator closes the connection.
            return start, self._iterate(response, stack.pop_all(), name)

    def _iterate(
        self, response: Any, stack: ExitStack, name: str
    ) -> Generator[bytes, None, None]:
        with stack, self._errors(name):
            # As they arrive: collecting larger pieces would lose one at each drop.
            yield from response.iter_bytes()

    @contextmanager
    def _errors(self, name: str = "") -> Iterator[None]:
        """Turn what the hub library raises into `Dropped` or the user's error."""
        from huggingface_hub.errors import HfHubHTTPError

        # httpx's base error (httpx2's, from hub 2 on), whichever the library uses.
        transport: type[Exception] = HfHubHTTPError.__mro__[1]
        try:
            yield
        except (LmiBuildError, Dropped):
            raise
        except HfHubHTTPError as error:
            raise self._explain(error, name) from error
        except (transport, ConnectionError, TimeoutError) as error:
            # Only the kind: the text may hold a signed URL.
            raise Dropped(_plain_reason(error)) from error

    def _explain(self, error: Any, name: str) -> LmiBuildError | Dropped:
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", 0)
        what = f"`{name}` of `{self.source}`" if name else f"`{self.source}`"
        page = self._page
        if status in _BUSY:
            return Dropped(f"HTTP {status}")
        if isinstance(error, errors.GatedRepoError):
            have = "your token has no access" if self._token else "no token is set"
            return RemoteFailed(
                f"{what} is gated and {have}",
                code="source.gated",
                hints=(
                    (
                        f"accept the licence at {page}, then set HF_TOKEN to a token of"
                        " that account with read access"
                    ),
                ),
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return SourceInvalid(
                f"{what} has no revision `{self.revision}`",
                code="source.revision-missing",
                hints=(f"see {page}/commits/main for its commits",),
            )
        if isinstance(error, errors.EntryNotFoundError):
            return SourceInvalid(
                f"{what} is not there at revision `{self.revision}`",
                code="source.file-missing",
                hints=(f"see {page}/tree/{self.revision}",),
            )
        if isinstance(error, errors.RepositoryNotFoundError) and status in {401, 404}:
            return self._missing(status)
        return RemoteFailed(
            f"{self.endpoint} answered HTTP {status} for {what}",
            code="source.unauthorized" if status in {401, 403} else "source.refused",
            hints=(
                "check that HF_TOKEN is valid and may read it"
                if status in {401, 403}
                else f"try {page} in a browser",
            ),
        )

    def _missing(self, status: int) -> LmiBuildError:
        # A hub answers 401 for what does not exist and for what is private alike.
        hints = [f"check the spelling: {self._page}"]
        if self._token is None:
            hints.append("if it is private, set HF_TOKEN")
        elif status == _UNAUTHORIZED:
            hints.insert(0, "check that HF_TOKEN is still valid")
        else:
            hints.append("if it is private, HF_TOKEN needs read access to it")
        return RemoteFailed(
            f"`{self.source}` does not exist at {self.endpoint}, or you may not see it",
            code="source.repo-missing",
            hints=tuple(hints),
        )


def _plain_reason(error: Exception) -> str:
    names = {
        "ConnectError": "no connection",
        "ConnectionRefusedError": "connection refused",
        "ConnectTimeout": "no connection in time",
        "ReadTimeout": "no answer in time",
        "ReadError": "connection reset",
        "RemoteProtocolError": "connection closed in the middle of an answer",
    }
    return names.get(type(error).__name__, type(error).__name__)
