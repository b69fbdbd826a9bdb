"""Where a result lies, or why it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.errors import RemoteFailed
from lmi_build.store.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.digest import Digest
    from lmi_build.store.store import Store
    from lmi_build.values.result import StageResult

HERE = "here"
THERE = "there"


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """
    What is known of one key.

    Args:
        result: The result, or None.
        where: `here`, `there` (only in the shared store), or empty.
        cause: Why the shared store has none; empty where it was not asked.
        error: Why the shared store could not be asked.
    """

    result: StageResult | None = None
    where: str = ""
    cause: str = ""
    error: RemoteFailed | None = None


def whereabouts(store: Store, keys: Iterable[Digest]) -> dict[Digest, Whereabouts]:
    """
    Look for many results; a shared store that refuses is told, not raised.

    Args:
        store: Local or tiered.
        keys: Names of work.
    """
    found: dict[Digest, Whereabouts] = {}
    absent: list[Digest] = []
    for key in keys:
        result = store.lookup_here(key)
        if result is None:
            absent.append(key)
        found[key] = Whereabouts(result=result, where=HERE if result else "")
    if absent and isinstance(store, TieredStore):
        found |= _there(store, absent)
    return found


def _there(store: TieredStore, keys: list[Digest]) -> dict[Digest, Whereabouts]:
    try:
        seen = store.find_all(keys)
    except RemoteFailed as error:
        cause = f"the shared store cannot be asked: {error.message}"
        return dict.fromkeys(keys, Whereabouts(cause=cause, error=error))
    return {
        key: Whereabouts(
            result=found.result, where=THERE if found.result else "", cause=found.cause
        )
        for key, found in seen.items()
    }
