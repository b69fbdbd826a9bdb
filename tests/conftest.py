"""Settings of the whole suite."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from botocore.loaders import JSONFileLoader

if TYPE_CHECKING:
    from collections.abc import Iterator

# Processes that share the cores have a share of them each: with two threads in each of
# two processes, threads wait for turns, and rounding a model takes seven times as long.
NUM_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if NUM_PROCESSES > 1:
    share = str(max(1, len(os.sched_getaffinity(0)) // NUM_PROCESSES))
    for variable in ("LMI_BUILD_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, share)

# The machine is shared with compilers: a slow example is not a failing one.
hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that rewrites golden files."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite golden files instead of comparing with them",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes, so that no process is left with it at the end."""

    def is_short(item: pytest.Item) -> bool:
        return not any(item.get_closest_marker(name) for name in ("e2e", "slow"))

    items.sort(key=is_short)


@pytest.fixture(scope="session", autouse=True)
def _service_files() -> Iterator[None]:
    """Read what botocore knows of a service once a process, not once a session."""
    read = JSONFileLoader.load_file
    known: dict[str, Any] = {}

    def load_file(self: JSONFileLoader, path: str) -> Any:
        if path not in known:
            found = read(self, path)
            if found is None:
                return None
            known[path] = found
        return known[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", load_file)
        yield


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))
