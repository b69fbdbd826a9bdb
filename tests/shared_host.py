"""
One host of several at one plan, as a process of its own that a test can kill.

Usage: shared_host.py REQUEST, a JSON file of `server`, `root`, `host`, `plan`,
`lease_seconds`. Prints events as lines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmi_build.errors import LmiBuildError
from lmi_build.events import Event, to_json
from lmi_build.execute.shared import execute_shared
from lmi_build.execute.stores import open_store
from lmi_build.plan.saved import plan_from_json
from shared_stores import QUICK, host


def main() -> int:
    """Build; returns the exit status."""
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_bytes())
    server: Any = SimpleNamespace(url=request["server"])
    given = host(Path(request["root"]), server)
    store = open_store(
        given,
        transfer=QUICK,
        host=request["host"],
        lease_seconds=request["lease_seconds"],
        look_seconds=0.1,
    )

    def emit(event: Event) -> None:
        print(to_json(event), flush=True)  # noqa: T201

    plan = plan_from_json(json.dumps(request["plan"]).encode(), "request")
    try:
        execute_shared(
            plan,
            store=store,
            settings=given,
            emit=emit,
            host=request["host"],
            run="run",
            pause_seconds=0.1,
        )
    except LmiBuildError as error:
        print(json.dumps({"failed": error.code}), flush=True)  # noqa: T201
        return error.exit_code
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
