"""
Laws that every backend obeys, for the authors of backends.

```python
import pytest
from lmi_build import registry
from lmi_build.testing import BackendLaws, EngineLaws


@pytest.fixture(scope="class")
def backend():
    return registry.backend("mine")


class TestBackend(BackendLaws): ...


class TestEngine(EngineLaws): ...
```

Without pytest, `broken_laws(BACKEND_LAWS, backend)` names the laws that are broken.
Needs `lmi-build[testing]`; building needs what the backend needs, and transformers for
the float model that an engine is held against.
"""

from lmi_build.testing.engine_laws import ARTIFACT_LAWS, ENGINE_LAWS, SESSION_LAWS
from lmi_build.testing.engines import (
    ENGINE_BOUNDS,
    Buildable,
    Built,
    build,
    buildable,
    built_here,
    missing,
)
from lmi_build.testing.law import Broken, Law, broken_laws
from lmi_build.testing.planner_laws import PLANNER_LAWS
from lmi_build.testing.provider_laws import PROVIDER_LAWS
from lmi_build.testing.samples import Case, accepted, llama_facts, recipe_of, settle
from lmi_build.testing.suite import BACKEND_LAWS, BackendLaws, EngineLaws
from lmi_build.testing.tiny import make_tiny_llama

__all__ = [
    "ARTIFACT_LAWS",
    "BACKEND_LAWS",
    "ENGINE_BOUNDS",
    "ENGINE_LAWS",
    "PLANNER_LAWS",
    "PROVIDER_LAWS",
    "SESSION_LAWS",
    "BackendLaws",
    "Broken",
    "Buildable",
    "Built",
    "Case",
    "EngineLaws",
    "Law",
    "accepted",
    "broken_laws",
    "build",
    "buildable",
    "built_here",
    "llama_facts",
    "make_tiny_llama",
    "missing",
    "recipe_of",
    "settle",
]
