"""The plugin `echo` under the suite, as its author would write it down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmi_build import registry
from lmi_build.testing import BackendLaws, EngineLaws

if TYPE_CHECKING:
    from lmi_build.spi import Backend


@pytest.fixture(scope="class")
def backend() -> Backend:
    """Found as a recipe would find it."""
    return registry.backend("echo")


class TestBackend(BackendLaws):
    """Before anything is built."""


class TestEngine(EngineLaws):
    """What it builds."""
