"""A user's folder, and the commands that are typed in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAIN = "from lmi_build.cli.main import main; main()"


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Desk:
    """A folder with a model and a recipe; the store lies in it too."""

    root: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.root / "model"

    @property
    def tree(self) -> Path:
        """The artifact that a build writes."""
        return self.root / "artifacts" / "tiny"

    @property
    def environment(self) -> dict[str, str]:
        """Where programs are, the threads they may have, and what this desk sets."""
        kept: tuple[str, ...] = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
        kept = (*kept, "LMI_BUILD_THREADS", "OMP_NUM_THREADS")
        found = {name: os.environ[name] for name in kept if name in os.environ}
        return {**found, **self.variables}

    def arguments(self, *arguments: str) -> list[str]:
        """A command line of this interpreter's installation."""
        return [sys.executable, "-c", MAIN, "--cache-dir", "store", *arguments]

    def run(self, *arguments: str) -> Done:
        """Run one command to its end; it never ends with a traceback."""
        done = subprocess.run(
            self.arguments(*arguments),
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert "error[bug]" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def change_config(self, **changes: Any) -> None:
        """Give keys of the model's `config.json` other values."""
        path = self.model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))
