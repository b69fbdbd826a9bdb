"""What a build needs of a store, wherever it keeps its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from lmi_build.digest import Digest, JSONValue
    from lmi_build.values.result import Measure, StageResult


class BuildStore(Protocol):
    """
    Results by key, and a place to make them in.

    A store that shares its results raises `RemoteFailed` where the other side refuses
    or vanishes; what is on this machine is kept.
    """

    root: Path

    def lookup(self, key: Digest) -> StageResult | None:
        """The result of a key, if every one of its files can be had."""

    def lookup_all(self, keys: Iterable[Digest]) -> dict[Digest, StageResult | None]:
        """The result of each key."""

    def is_here(self, result: StageResult) -> bool:
        """Whether every file of a result lies on this machine."""

    def bring(self, results: Iterable[StageResult], got: Callable[[int], None]) -> None:
        """Make sure that every file of these results lies on this machine."""

    def materialize(self, result: StageResult, dest: Path) -> None:
        """Lay a result out as a folder; files share bytes with the store."""

    def in_use(self) -> AbstractContextManager[None]:
        """Keep prune and repair away while something is built."""

    def building(
        self, key: Digest, on_wait: Callable[[], None]
    ) -> AbstractContextManager[Path]:
        """Hold a key while it is built, and give an empty scratch folder for it."""

    def try_building(
        self, key: Digest, *, run: str = ""
    ) -> AbstractContextManager[Path | None]:
        """Do what `building` does, but yield None where somebody else holds the key."""

    def fail(self, key: Digest, *, run: str, error: Mapping[str, Any]) -> None:
        """Remember that a key failed in a run, for those who share it."""

    def failure(self, key: Digest) -> Mapping[str, Any] | None:
        """The error that `try_building` found, or that `fail` was told of."""

    def state_dir(self, key: str) -> Path:
        """Where an attempt may leave what the next one can use."""

    def commit(
        self,
        key: Digest,
        staged: Path,
        *,
        key_document: Mapping[str, JSONValue],
        stage: str,
        measure: Measure,
    ) -> StageResult:
        """Keep a finished folder under its key; returns the result that stays."""

    def share(self, result: StageResult, *, thorough: bool = False) -> int:
        """Let others have a result; returns the bytes that were sent."""
