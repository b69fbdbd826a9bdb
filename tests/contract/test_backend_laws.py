"""Every backend that is installed obeys the laws of backends, whatever its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmi_build import registry
from lmi_build.testing import ENGINE_BOUNDS, BackendLaws, EngineLaws

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.spi import Backend

PACKED: Mapping[str, Mapping[str, JSONValue]] = {
    "int8": {"method": "int8"},
    "int4": {"method": "rtn", "bits": 4, "group_size": 32},
}


# One slot: a compiler that makes a graph for each number of slots makes one fewer.
ONE_SLOT: Mapping[str, int] = {**ENGINE_BOUNDS, "max_batch_size": 1}
NAMES = registry.names(registry.BACKENDS)
# Of these a graph takes a quarter of a minute.
COMPILED = ("aotinductor",)


@pytest.fixture(scope="class", params=NAMES)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the entry points."""
    return registry.backend(request.param)


class TestBackends(BackendLaws):
    """What a backend says before anything is built."""


class TestEngines(EngineLaws):
    """What it builds, where this machine can."""

    @pytest.fixture(scope="class", params=[x for x in NAMES if x not in COMPILED])
    @classmethod
    def backend(cls, request: pytest.FixtureRequest) -> Backend:
        """Those that build in seconds."""
        return registry.backend(request.param)


class TestCompiledEngines(EngineLaws):
    """The same where each graph is compiled; tests of the backend have two slots."""

    bounds = ONE_SLOT

    @pytest.fixture(scope="class", params=COMPILED)
    @classmethod
    def backend(cls, request: pytest.FixtureRequest) -> Backend:
        """The others."""
        return registry.backend(request.param)


class TestPackedEngines(EngineLaws):
    """The same of packed weights, against what they mean in float32; built once."""

    twice = False
    bounds = ONE_SLOT

    @pytest.fixture(scope="class", params=PACKED)
    @classmethod
    def quantize(cls, request: pytest.FixtureRequest) -> Mapping[str, JSONValue]:
        """Eight and four bits."""
        return PACKED[request.param]
