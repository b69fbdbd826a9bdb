"""A place without files or variables, for what must be pure."""

from __future__ import annotations

import builtins
import io
import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lmi_build.testing.law import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

_DAY_SECONDS = 86400.0


class _Watched(dict[str, str]):
    """An environment that must not be asked."""

    def _refuse(self, name: object) -> Any:
        raise Broken(f"lowering reads the environment: {name!r}")

    __getitem__ = _refuse
    __contains__ = _refuse

    def get(self, name: str, default: Any = None) -> Any:
        """Refuse."""
        del default
        return self._refuse(name)


@contextmanager
def sealed() -> Iterator[None]:
    """
    Forbid files and variables, and set the clock a day ahead.

    Raises:
        Broken: Something inside opens a file or asks the environment.
    """

    def refuse(path: object, *_args: object, **_kwargs: object) -> Any:
        raise Broken(f"lowering opens a file: {path!r}")

    ahead = time.time() + _DAY_SECONDS
    with ExitStack() as stack:
        for owner, name, value in (
            (os, "environ", _Watched()),
            (builtins, "open", refuse),
            (io, "open", refuse),
            (os, "open", refuse),
            (os, "listdir", refuse),
            (os, "scandir", refuse),
            (time, "time", lambda: ahead),
            (time, "time_ns", lambda: int(ahead * 1e9)),
        ):
            stack.enter_context(patch.object(owner, name, value))
        yield
