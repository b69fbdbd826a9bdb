"""The folder of one run: logs, the event stream, and the keys for `why`."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build.events import to_json
from lmi_build.store import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from lmi_build.events import Emit, Event
    from lmi_build.values.result import StageRow
    from lmi_build.values.stage import Plan, Stage


@dataclass(kw_only=True, slots=True)
class RunRecord:
    """
    Where one run writes; a run that builds nothing writes nothing.

    Args:
        folder: `<store>/builds/<recipe>/<time>-<pid>`.
    """

    folder: Path
    _pending: list[str] = field(default_factory=list)

    @classmethod
    def create(cls, root: Path, plan: Plan) -> RunRecord:
        """Name a new run; nothing is written yet."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        return cls(folder=root / "builds" / plan.recipe / f"{stamp}-{os.getpid()}")

    def log_path(self, stage: Stage) -> Path:
        """The log of a stage."""
        return self.folder / f"{stage.name.replace('/', '.')}.log"

    def tee(self, emit: Emit) -> Emit:
        """Send every event on, and keep it for the record."""

        def both(event: Event) -> None:
            self._pending.append(to_json(event))
            emit(event)

        return both

    def close(self, plan: Plan, rows: Iterable[StageRow], *, ok: bool) -> None:
        """Write the record, unless the run only found cached results."""
        finished = list(rows)
        if ok and all(row.cached for row in finished):
            return
        document = {
            "recipe": plan.recipe,
            "ok": ok,
            "stages": [
                {"name": stage.name, "key": stage.key, "document": stage.key_document()}
                for stage in plan.stages
            ],
            "built": [row.name for row in finished if not row.cached],
        }
        try:
            files.write_atomic(
                self.folder / "events.ndjson", "\n".join(self._pending).encode() + b"\n"
            )
            files.write_atomic(
                self.folder / "build.json", json.dumps(document, indent=1).encode()
            )
        except OSError as error:
            raise files.explain_os_error(
                error, "writing the run's record", self.folder
            ) from error


def past_runs(root: Path, recipe: str) -> Iterator[dict[str, Any]]:
    """Records of earlier runs of a recipe, newest first; damaged ones are skipped."""
    for path in sorted((root / "builds" / recipe).glob("*/build.json"), reverse=True):
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(document, dict):
            yield document
