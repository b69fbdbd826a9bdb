"""The laws as test classes, for pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmi_build.testing.engine_laws import ENGINE_LAWS
from lmi_build.testing.engines import (
    ENGINE_BOUNDS,
    FLOAT,
    build,
    buildable,
    missing,
)
from lmi_build.testing.planner_laws import PLANNER_LAWS
from lmi_build.testing.provider_laws import PROVIDER_LAWS
from lmi_build.testing.tiny import make_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.digest import JSONValue
    from lmi_build.spi import Backend
    from lmi_build.testing.engines import Built
    from lmi_build.testing.law import Law

BACKEND_LAWS = PROVIDER_LAWS + PLANNER_LAWS


class BackendLaws:
    """
    Laws that need no toolchain: inherit, and give a fixture `backend`.

    ```python
    class TestMine(BackendLaws):
        @pytest.fixture
        def backend(self) -> Backend:
            return PROVIDER
    ```
    """

    @pytest.mark.parametrize("law", BACKEND_LAWS, ids=lambda law: law.name)
    def test_law(self, backend: Backend, law: Law[Backend]) -> None:
        """One law each; its name says which."""
        spared = law.spared(backend)
        if spared:
            pytest.skip(spared)
        law.hold(backend)


class EngineLaws:
    """
    Laws of what is built: inherit, and give a fixture `backend` as for `BackendLaws`.

    A small Llama is built and verified, twice unless `twice` is False; `bounds` and
    the fixtures `model` and `quantize` (a recipe's section) may be replaced. Where a
    machine can build nothing, the laws are skipped with what is missing.
    """

    twice = True
    bounds: Mapping[str, int] = ENGINE_BOUNDS

    @pytest.fixture(scope="class")
    @classmethod
    def quantize(cls) -> Mapping[str, JSONValue]:
        """How the model is quantized before."""
        return FLOAT

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The model's folder."""
        return make_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")

    @pytest.fixture(scope="class")
    @classmethod
    def built(
        cls,
        backend: Backend,
        model: Path,
        quantize: Mapping[str, JSONValue],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Built:
        """What the laws are held against."""
        place = tmp_path_factory.mktemp("built")
        what = buildable(backend, model, place, quantize=quantize, bounds=cls.bounds)
        if what is None:
            pytest.skip(missing(backend, model, place, quantize=quantize))
        return build(backend, what, place, twice=cls.twice)

    @pytest.mark.parametrize("law", ENGINE_LAWS, ids=lambda law: law.name)
    def test_law(self, built: Built, law: Law[Built]) -> None:
        """One law each; its name says which."""
        spared = law.spared(built)
        if spared:
            pytest.skip(spared)
        law.hold(built)
