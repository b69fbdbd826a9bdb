"""
A lease: who builds a key just now, as one small object that only one host can hold.

```
leases/<64 hex>.json   {"schema": 1, "holder": HOST/RANDOM, "beat": N, "seconds": S}
```

Every write is conditional on what was read (If-None-Match, If-Match), so of two hosts
one wins. The holder writes anew three times in `seconds`; a lease that was not written
for `seconds`, by the clock of the server alone, is free. A holder that loses its lease
goes on: the record that comes first stays, and work done twice is the only harm.

| found                          | meaning                       | action              |
| ------------------------------ | ----------------------------- | ------------------- |
| no object                      | nobody builds                 | created             |
| holder, younger than `seconds` | it is being built             | waited for          |
| holder, older                  | the host was lost             | taken over          |
| no holder                      | given back, unfinished        | taken over          |
| no holder, `failed`            | the stage failed in that run  | left in that run    |
| anything else                  | foreign                       | taken over when old |
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build.errors import RemoteFailed
from lmi_build.store.record import hex_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.store.bucket import Remote, SmallObject

_LOG = logging.getLogger(__name__)

_SCHEMA = 1
# Long enough for a host that swaps or a network that pauses, short enough that a lost
# host costs little beside a stage.
LEASE_SECONDS = 60.0
_BEATS_PER_LEASE = 3
# HTTP dates are whole seconds; two of them differ by up to one more.
_CLOCK_GRAIN_SECONDS = 1.0


def lease_key(key: str) -> str:
    """Where the lease of a key lies."""
    return f"leases/{hex_of(key)}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """
    A lease as it was read.

    Args:
        tag: What a conditional write compares; empty when there is none.
        holder: Who holds it; empty when nobody does.
        free: Whether it may be taken.
        failed: What its last holder met, and in which run.
    """

    tag: str
    holder: str
    free: bool
    failed: Mapping[str, Any] = field(default_factory=dict)


def look(remote: Remote, key: str) -> Seen:
    """
    Read the lease of a key.

    Raises:
        RemoteFailed: It cannot be read.
    """
    stored = remote.read(lease_key(key))
    if stored is None:
        return Seen(tag="", holder="", free=True)
    document = _parse(stored)
    holder = str(document.get("holder", "?"))
    seconds = document.get("seconds")
    limit = seconds if isinstance(seconds, (int, float)) else LEASE_SECONDS
    old = stored.age_seconds > limit + _CLOCK_GRAIN_SECONDS
    failed = document.get("failed")
    return Seen(
        tag=stored.tag,
        holder=holder,
        free=not holder or old,
        failed=failed if isinstance(failed, dict) else {},
    )


def _parse(stored: SmallObject) -> dict[str, Any]:
    try:
        document = json.loads(stored.data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


class Lease:
    """
    A lease that this process holds, renewed by a thread of its own.

    Args:
        remote: The bucket.
        key: Name of the work.
        holder: Unique to this claim.
        tag: Of what was written to claim it.
        seconds: How long it holds without being renewed.
    """

    def __init__(
        self, remote: Remote, key: str, *, holder: str, tag: str, seconds: float
    ) -> None:
        self._remote = remote
        self._key = lease_key(key)
        self._holder = holder
        self._tag = tag
        self._seconds = seconds
        self._beat = 0
        self._ended = threading.Event()
        self.lost = False
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(self._seconds / _BEATS_PER_LEASE):
            self._beat += 1
            data = _document(self._holder, self._beat, self._seconds)
            try:
                tag = _swap(self._remote, self._key, data, self._tag)
            except RemoteFailed as error:
                _LOG.warning("%s: not renewed: %s", self._key, error.message)
                # Others may take it now; whether they did, the next beat tells.
                self.lost = time.monotonic() - renewed > self._seconds
                continue
            if tag is None:
                self.lost = True
                return
            self._tag, renewed, self.lost = tag, time.monotonic(), False

    def end(self, *, done: bool, failed: Mapping[str, Any] | None = None) -> None:
        """
        Give it back.

        Args:
            done: Whether the record is there, so that nobody will ask for the lease.
            failed: What to tell others of the same run.

        Raises:
            RemoteFailed: The remote refuses; the lease ends by itself then.
        """
        self._ended.set()
        self._thread.join()
        if self.lost:
            return
        if done:
            self._remote.remove(self._key)
            return
        document: dict[str, Any] = {"schema": _SCHEMA, "holder": "", "seconds": 0}
        if failed:
            document["failed"] = dict(failed)
        data = json.dumps(document).encode()
        self.lost = _swap(self._remote, self._key, data, self._tag) is None


def claim(
    remote: Remote,
    key: str,
    *,
    host: str,
    run: str = "",
    seconds: float = LEASE_SECONDS,
) -> tuple[Lease | None, Seen]:
    """
    Try to become the one who builds a key.

    Args:
        remote: The bucket.
        key: Name of the work.
        host: Who asks, for people.
        run: What failed in this run is not tried again in it; empty for none.
        seconds: How long the lease holds without being renewed.

    Returns:
        The lease, or None when another host holds it or it failed in this run, and
        what was there before.

    Raises:
        RemoteFailed: The remote cannot be asked or refuses.
    """
    seen = look(remote, key)
    if not seen.free or (run and seen.failed.get("run") == run):
        return None, seen
    holder = f"{host}/{uuid.uuid4().hex}"
    data = _document(holder, 0, seconds)
    tag = _swap(remote, lease_key(key), data, seen.tag)
    if tag is None:
        return None, seen
    lease = Lease(remote, key, holder=holder, tag=tag, seconds=seconds)
    return lease, seen


def refuse_unconditional(remote: Remote, key: str) -> None:
    """
    Refuse a server that writes whatever the condition; the caller holds the lease.

    On such a server two hosts would hold one lease, and neither would know.

    Raises:
        RemoteFailed: `remote.not-implemented`.
    """
    stored = remote.read(lease_key(key))
    if stored is not None and remote.put(lease_key(key), stored.data) is not None:
        raise RemoteFailed(
            f"{remote.uri(lease_key(key))} was overwritten in spite of"
            " `If-None-Match: *`: this server does not honour conditions",
            code="remote.not-implemented",
            hints=(
                "use AWS S3, or a server that honours `If-None-Match` and `If-Match`",
            ),
        )


def _document(holder: str, beat: int, seconds: float) -> bytes:
    document = {
        "schema": _SCHEMA,
        "holder": holder,
        "beat": beat,
        "seconds": seconds,
    }
    return json.dumps(document).encode()


def _swap(remote: Remote, key: str, data: bytes, tag: str) -> str | None:
    """Write if nothing came between; a write whose answer was lost is recognised."""
    written = remote.put(key, data, tag=tag)
    if written is None:
        stored = remote.read(key)
        if stored is not None and stored.data == data:
            return stored.tag
    return written
