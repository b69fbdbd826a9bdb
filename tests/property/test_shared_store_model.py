"""Random histories of hosts that share a store, held against a plain model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmi_build.errors import RemoteFailed
from lmi_build.store.far import blob_key, record_key
from lmi_build.store.gc import prune, verify_store
from lmi_build.store.record import parse_record
from lmi_build.store.store import Store
from lmi_build.store.tiered import TieredStore
from memory_remote import Bucket, MemoryRemote
from shared_stores import commit, key_of

NAMES = st.sampled_from(["a", "b", "c"])
HOSTS = st.sampled_from(["one", "two", "three"])


class SharedStore(RuleBasedStateMachine):
    """
    Three hosts commit, look up, fetch, forget and are killed, in any order.

    The model is one digest for each name: that of the first record that stood.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.bucket = Bucket()
        self.first: dict[str, str] = {}
        # Names whose objects somebody removed behind the store's back.
        self.robbed: set[str] = set()

    def teardown(self) -> None:
        """Leave nothing."""
        self.folder.cleanup()

    def store(self, host: str) -> TieredStore:
        """A process of its own on a host: nothing is remembered."""
        root = Path(self.folder.name, host)
        return TieredStore(root, lambda: MemoryRemote(self.bucket), host=host)

    def commit(self, host: str, name: str) -> Any:
        """What a host makes of a name; no two hosts make the same bytes."""
        data = f"{name} by {host}".encode()
        return commit(self.store(host), Path(self.folder.name), name, data)

    @rule(host=HOSTS, name=NAMES)
    def build(self, host: str, name: str) -> None:
        """A build that finds the result, or makes it; the first record stays."""
        with_local = self.store(host).lookup_here(key_of(name))
        found = self.store(host).lookup(key_of(name))
        if found is None:
            result = self.commit(host, name)
            self.robbed.discard(name)
            stood = self.first.setdefault(name, result.digest)
            if name in self.first and stood != result.digest:
                self.first[name] = result.digest  # its files had been removed
        elif with_local is None:
            assert found.digest == self.first[name]

    @rule(host=HOSTS, name=NAMES, writes=st.integers(0, 6))
    def build_and_be_killed(self, host: str, name: str, writes: int) -> None:
        """The host is cut off at its n-th write; whatever stands is whole."""
        if self.store(host).lookup(key_of(name)) is not None:
            return
        before = self.bucket.objects.get(record_key(key_of(name)))
        self.bucket.fuse = writes
        try:
            result = self.commit(host, name)
        except RemoteFailed:
            stored = self.bucket.objects.get(record_key(key_of(name)))
            # A record that stood already may still lack the files that were taken.
            if stored is not None and stored != before:
                self._note(name, stored[0])
        else:
            self.first[name] = result.digest
            self.robbed.discard(name)
        finally:
            self.bucket.fuse = None
        # A lost host's lease and half-done work would end by time.
        for key in [k for k in self.bucket.objects if k.startswith("leases/")]:
            del self.bucket.objects[key]

    def _note(self, name: str, data: bytes) -> None:
        document, _ = parse_record(key_of(name), data)
        if document is not None:
            self.first[name] = document["digest"]
            self.robbed.discard(name)

    @rule(host=HOSTS, name=NAMES)
    def share(self, host: str, name: str) -> None:
        """A host sends what only it has; what is there already stays."""
        store = self.store(host)
        kept = store.lookup_here(key_of(name))
        if kept is None:
            return
        there = store.find(key_of(name)).result
        store.share(kept, thorough=True)
        if there is None or name in self.robbed:
            self._note(name, self.bucket.objects[record_key(key_of(name))][0])

    @rule(host=HOSTS, name=NAMES)
    def fetch(self, host: str, name: str) -> None:
        """What is fetched has the bytes that its record says."""
        store = self.store(host)
        found = store.lookup(key_of(name))
        if found is not None:
            store.bring([found])
            assert store.lookup_here(key_of(name)) is not None

    @rule(host=HOSTS)
    def forget(self, host: str) -> None:
        """A host empties its disk."""
        prune(self.store(host), older_than_seconds=0.0)

    @precondition(lambda self: self.first)
    @rule(data=st.data())
    def rob(self, data: st.DataObject) -> None:
        """Somebody deletes a blob from the bucket."""
        blobs = sorted(k for k in self.bucket.objects if k.startswith("blobs/"))
        if not blobs:
            return
        gone = data.draw(st.sampled_from(blobs))
        del self.bucket.objects[gone]
        for name in self.first:
            stored = self.bucket.objects.get(record_key(key_of(name)))
            if stored and gone.rpartition("/")[2].encode() in stored[0]:
                self.robbed.add(name)

    @invariant()
    def hosts_are_clean(self) -> None:
        """No host's own store holds anything that is not what its name says."""
        for host in ("one", "two", "three"):
            store = Store(Path(self.folder.name, host))
            assert verify_store(store) == []

    @invariant()
    def records_are_whole(self) -> None:
        """Every record there has all of its files, unless somebody took them."""
        for name in ("a", "b", "c"):
            stored = self.bucket.objects.get(record_key(key_of(name)))
            if stored is None or name in self.robbed:
                continue
            document, fault = parse_record(key_of(name), stored[0])
            assert document is not None, fault
            assert document["digest"] == self.first[name]
            for _, digest, _ in document["entries"]:
                assert blob_key(digest) in self.bucket.objects


SharedStore.TestCase.settings = settings(max_examples=40, stateful_step_count=12)
test_shared_store = SharedStore.TestCase
