"""Every backend that is installed obeys the laws of backends, whatever its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmi_build import registry
from lmi_build.testing import BackendLaws, EngineLaws

if TYPE_CHECKING:
    from lmi_build.spi import Backend


@pytest.fixture(scope="class", params=registry.names(registry.BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the entry points."""
    return registry.backend(request.param)


class TestBackends(BackendLaws):
    """What a backend says before anything is built."""


class TestEngines(EngineLaws):
    """What it builds, where this machine can."""
