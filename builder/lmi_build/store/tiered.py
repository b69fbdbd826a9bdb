"""
A local store with a shared one behind it.

Reading: a record that is not here is looked up there, and its files are fetched when
something needs them. Writing: a result is kept here first, then its files are sent, and
its record last; what somebody else has made known first is what stays.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lmi_build.errors import LmiBuildError, PublishFailed, RemoteFailed, StoreCorrupt
from lmi_build.store import files
from lmi_build.store.far import FarStore, Found
from lmi_build.store.lease import LEASE_SECONDS, Lease, claim, refuse_unconditional
from lmi_build.store.mirror import LOOK_SECONDS, Mirror
from lmi_build.store.record import hex_of
from lmi_build.store.store import Store, _ignore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from lmi_build.digest import Digest, JSONValue
    from lmi_build.store.bucket import Remote
    from lmi_build.values.result import Measure, StageResult

_LOG = logging.getLogger(__name__)

# Between two looks at a lease that another machine holds.
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 15.0
# Records asked for at once; each is one short request.
_LOOKUPS_AT_ONCE = 16


class TieredStore(Store):
    """
    The store under one root folder, and a shared one behind it.

    Args:
        root: Created on first write.
        connect: Makes the connection, when it is first needed.
        host: This machine, for those who wait for it.
        lease_seconds: How long a key is kept for a machine that says nothing.
        look_seconds: How often half-done work is looked at.
    """

    def __init__(
        self,
        root: Path,
        connect: Callable[[], Remote],
        *,
        host: str = "",
        lease_seconds: float = LEASE_SECONDS,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        super().__init__(root)
        self._host = host
        self._lease_seconds = lease_seconds
        self._look_seconds = look_seconds
        self._mirrors: dict[str, Mirror] = {}
        # Asked once, with the first lease.
        self._conditions_hold = False
        self._connect = connect
        self._far: FarStore | None = None
        self._lock = threading.Lock()
        # Records that this process has seen whole there, by key.
        self._shared: dict[str, Found] = {}

    @property
    def far(self) -> FarStore:
        """The shared store."""
        with self._lock:
            if self._far is None:
                self._far = FarStore(self._connect())
            return self._far

    def close(self) -> None:
        """Give connections back."""
        with self._lock:
            if self._far is not None:
                self._far.remote.close()
                self._far = None

    # -- reading ---------------------------------------------------------------

    def lookup(self, key: Digest) -> StageResult | None:
        """
        The result of a key: the one that is here, else the one that is there.

        Raises:
            RemoteFailed: It is not here, and the shared store cannot be asked.
        """
        return self.lookup_here(key) or self.find(key).result

    def lookup_all(self, keys: Iterable[Digest]) -> dict[Digest, StageResult | None]:
        """The result of each key; the shared store is asked for all of them at once."""
        return {
            key: self.lookup_here(key) or found.result
            for key, found in self.find_all(keys).items()
        }

    def find_all(self, keys: Iterable[Digest]) -> dict[Digest, Found]:
        """What the shared store holds for each key, asked for all of them at once."""
        wanted = list(keys)
        if len(wanted) <= 1:
            return {key: self.find(key) for key in wanted}
        with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as pool:
            return dict(zip(wanted, pool.map(self.find, wanted), strict=True))

    def find(self, key: Digest) -> Found:
        """
        What the shared store holds for a key, and if nothing, why.

        Raises:
            RemoteFailed: It cannot be asked.
        """
        known = self._shared.get(key)
        if known is not None:
            return known
        found = self.far.find(key, self._present)
        if found.result is not None:
            self._shared[key] = found
        return found

    def bring(
        self, results: Iterable[StageResult], got: Callable[[int], None] = _ignore
    ) -> None:
        """
        Fetch the files of these results that are not here.

        Args:
            results: From `lookup`.
            got: Told of bytes as they come, from several threads.

        Raises:
            RemoteFailed: A file cannot be had, or is not what its name says.
            StoreUnusable: The folder cannot be written.
        """
        wanted = [result for result in results if not self.is_here(result)]
        absent = {
            entry.digest: entry
            for result in wanted
            for entry in result.entries
            if not self._present(entry)
        }
        with files.explaining("fetching results", self.root):
            self.far.fetch(absent.values(), self.blob_path, got)
            for result in wanted:
                found = self._shared.get(result.key)
                if found is not None:
                    files.write_atomic(self.record_path(result.key), found.data)

    def lay_out(self, result: StageResult, dest: Path) -> None:
        """Fetch what is missing, then lay the result out."""
        self.bring([result])
        super().lay_out(result, dest)

    # -- writing ---------------------------------------------------------------

    @contextmanager
    def building(self, key: Digest, on_wait: Callable[[], None]) -> Iterator[Path]:
        """
        Hold a key on this machine and, by a lease, among all that share the store.

        What another machine left half-done is there, and what is done here is sent
        as it grows. When somebody else made the result meanwhile, nothing is held.

        Raises:
            RemoteFailed: The shared store cannot be asked or refuses.
        """
        with super().building(key, on_wait) as scratch:
            lease = self._wait_for_lease(key, on_wait)
            if lease is None:
                yield scratch
                return
            with self._holding(key, lease):
                yield scratch

    @contextmanager
    def try_building(self, key: Digest, *, run: str = "") -> Iterator[Path | None]:
        """Do what `building` does, but yield None where another holds the key."""
        with super().try_building(key, run=run) as scratch:
            if scratch is None:
                yield None
                return
            lease, seen = claim(
                self.far.remote,
                key,
                host=self._host,
                run=run,
                seconds=self._lease_seconds,
            )
            if lease is None:
                if run and seen.failed.get("run") == run:
                    self._failures[key] = dict(seen.failed)
                yield None
                return
            with self._holding(key, lease):
                yield scratch

    def _wait_for_lease(self, key: Digest, on_wait: Callable[[], None]) -> Lease | None:
        told, pause = False, _FIRST_PAUSE_SECONDS
        while True:
            lease, _ = claim(
                self.far.remote, key, host=self._host, seconds=self._lease_seconds
            )
            if lease is not None:
                return lease
            if not told:
                on_wait()
                told = True
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            if self.find(key).result is not None:
                return None

    @contextmanager
    def _holding(self, key: Digest, lease: Lease) -> Iterator[None]:
        mirror = Mirror(
            self.far,
            key,
            folder=self.state_dir(key),
            scratch=self.root / "scratch" / f"{hex_of(key)}.state",
            holding=lambda: not lease.lost,
        )
        self._mirrors[key] = mirror
        try:
            if not self._conditions_hold:
                refuse_unconditional(self.far.remote, key)
                self._conditions_hold = True
            mirror.restore()
            mirror.start(self._look_seconds)
            yield
        finally:
            done = key in self._shared
            self._mirrors.pop(key)
            try:
                mirror.end(finished=done)
                lease.end(done=done, failed=self._failures.get(key))
            except RemoteFailed as error:
                # The lease ends by itself; a failure here must not hide another.
                _LOG.warning("%s: not given back: %s", key, error.message)

    def commit(
        self,
        key: Digest,
        staged: Path,
        *,
        key_document: Mapping[str, JSONValue],
        stage: str,
        measure: Measure,
    ) -> StageResult:
        """
        Keep a result here, then let others have it.

        Returns:
            The result that stays: of two, the one whose record came first.

        Raises:
            RemoteFailed: It is kept here but could not be shared.
        """
        mirror = self._mirrors.get(key)
        if mirror is not None:
            mirror.pause()
        result = super().commit(
            key, staged, key_document=key_document, stage=stage, measure=measure
        )
        self.share(result, thorough=True)
        found = self._shared[key]
        assert found.result is not None  # noqa: S101 - only results are kept there
        if found.result.digest != result.digest:
            with files.explaining("keeping a result", self.root):
                files.write_atomic(self.record_path(key), found.data)
        return found.result

    def share(self, result: StageResult, *, thorough: bool = False) -> int:
        """
        Send a result that is here, unless it is there.

        Args:
            result: It lies in this folder.
            thorough: Also ask whether the files of a known record are still there.

        Returns:
            Bytes sent.

        Raises:
            RemoteFailed: The shared store refuses; what has arrived is kept, and the
                result stays here.
        """
        try:
            return self._share(result, thorough=thorough)
        except PublishFailed as error:
            raise StoreCorrupt(
                error.message, code="store.corrupt", hints=error.hints
            ) from error
        except RemoteFailed as error:
            raise _unshared(result, error) from error

    def _share(self, result: StageResult, *, thorough: bool) -> int:
        found = self._ask(result.key) if thorough else self.find(result.key)
        sent = 0
        if found.result is None:
            sent = self.far.send(result.entries, self.blob_path)
        while found.result is None:
            data = self.record_path(result.key).read_bytes()
            if self.far.put_record(result.key, data, tag=found.tag):
                found = Found(result=result, data=data)
            else:  # somebody else was first, or removed what we would replace
                found = self._ask(result.key)
        self._shared[result.key] = found
        return sent

    def _ask(self, key: str) -> Found:
        """What is there for a key, without regard to what is here."""
        return self.far.find(key, lambda _: False)


def _unshared(result: StageResult, error: LmiBuildError) -> RemoteFailed:
    return RemoteFailed(
        f"{result.key} could not be written to the shared store: {error.message}",
        code=error.code,
        hints=(
            "what was built is kept on this machine: the same command only sends it",
            *error.hints,
        ),
    )
