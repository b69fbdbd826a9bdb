"""Encoders compiled by the real driver with the stand-in of torch-neuronx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.compile_plan import compile_plan
from lmi_build.backends.neuronx.trace import ENGINE_DIR, lower_trace, trace_serving
from lmi_build.backends.neuronx.workplace import request, ship
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.sources.resolve import resolve_model
from lmi_build.values.bounds import Bounds
from lmi_build.values.recipe import (
    CompileSpec,
    ModelSpec,
    PackageSpec,
    QuantSpec,
    Recipe,
    ServeSpec,
    VerifySpec,
)
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.values.model import ModelFacts

STANDINS = Path(__file__).parent / "neuron_standins"
RELEASE = neuron_releases()["djl-neuronx-0.30.0"]


def recipe(
    options: Mapping[str, JSONValue] | None = None,
    *,
    max_input_len: int = 24,
    max_batch_size: int = 3,
    **parts: Any,
) -> Recipe:
    """A recipe for an encoder; `parts` replaces whole sections."""
    bounds = Bounds(
        max_input_len=max_input_len, max_output_len=1, max_batch_size=max_batch_size
    )
    values: dict[str, Any] = {
        "name": "tiny",
        "file": "tiny.yaml",
        "model": ModelSpec(source="./model"),
        "quantize": QuantSpec(),
        "bounds": bounds,
        "compile": CompileSpec(
            backend="neuronx", target="ml.inf2.xlarge", options=options or {}
        ),
        "serve": ServeSpec(),
        "verify": VerifySpec(),
        "package": PackageSpec(),
        "publish": None,
        "document": {},
    }
    return Recipe(**{**values, **parts})


def facts(folder: Path) -> ModelFacts:
    """What the planner knows of a model's folder."""
    return resolve_model(
        ModelSpec(source=str(folder)),
        settings=Settings(cache_dir=folder.parent / "cache"),
        base=folder,
    )


def run_driver(call: Mapping[str, Any], work: Path) -> subprocess.CompletedProcess[str]:
    """The driver as the compile stage starts it; its result is `work/result`."""
    work.mkdir()
    (work / "result").mkdir()
    ship(work / "driver")
    (work / "call.json").write_text(json.dumps(call))
    environment = {**os.environ, "PYTHONPATH": str(STANDINS), "HF_HUB_OFFLINE": "1"}
    words = [work / "driver", "build", work / "call.json", work / "result"]
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def asked(
    folder: Path, wanted: Recipe, *, device: bool = True, family: str = "inf2"
) -> dict[str, Any]:
    """What the driver reads, without the versions that the stand-ins do not have."""
    call = lower_trace(wanted, facts(folder), family=family)
    plan = compile_plan(call, RELEASE, num_cores=1)
    document: dict[str, Any] = dict(request(plan, model=str(folder), device=device))
    return {**document, "versions": {}}


def build_encoder(folder: Path, wanted: Recipe, root: Path) -> Path:
    """
    An artifact's folder as the package stage lays it out, ready to be loaded.

    Args:
        folder: The model.
        wanted: A recipe.
        root: Made by this; the artifact.
    """
    work = root.with_name(root.name + ".work")
    done = run_driver(asked(folder, wanted), work)
    assert done.returncode == 0, done.stdout + done.stderr
    root.mkdir()
    (work / "result").rename(root / ENGINE_DIR)
    serving = trace_serving(wanted)
    (root / "lmi_build.json").write_text(json.dumps(serving.settings))
    (root / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return root
