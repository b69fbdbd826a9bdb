"""Encoders compiled by the real driver with the stand-in of torch-neuronx."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.compile_plan import compile_plan
from lmi_build.backends.neuronx.drivers.common import MARK
from lmi_build.backends.neuronx.trace import ENGINE_DIR, lower_trace, trace_serving
from lmi_build.backends.neuronx.workplace import request, ship
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.sources.resolve import resolve_model
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import (
    FileFact,
    ModelFacts,
    TensorFact,
    geometry_from_config,
)
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
    from collections.abc import Iterator, Mapping, Sequence

    from lmi_build.digest import JSONValue

STANDINS = Path(__file__).parent / "neuron_standins"
RELEASE = neuron_releases()["djl-neuronx-0.30.0"]
MINILM: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
    "pad_token_id": 0,
}
ROBERTA = {
    **MINILM,
    "architectures": ["RobertaModel"],
    "model_type": "roberta",
    "max_position_embeddings": 514,
    "pad_token_id": 1,
}
FILES = ("config.json", "model.safetensors", "modules.json", "tokenizer.json")


def model(
    config: dict[str, Any] | None = None,
    *,
    files: tuple[str, ...] = FILES,
    num_elements: int = 22_700_000,
) -> ModelFacts:
    """A sentence encoder of the size of MiniLM."""
    config = config or MINILM
    return ModelFacts(
        kind="hub",
        source="owner/name",
        location="owner/name",
        revision="0" * 40,
        geometry=geometry_from_config(config),
        config=config,
        files=tuple(
            FileFact(path=p, size=1, digest="sha256:" + "0" * 64) for p in files
        ),
        tensors=(
            TensorFact(
                name="w",
                dtype="float32",
                shape=(num_elements,),
                file="model.safetensors",
            ),
        ),
        dtype="float32",
    )


def recipe(
    options: Mapping[str, JSONValue] | None = None,
    *,
    max_input_len: int = 24,
    max_batch_size: int = 3,
    **parts: Any,
) -> Recipe:
    """A recipe for an encoder; `parts` replaces whole sections."""
    bounds = Bounds(
        max_input_len=max_input_len, max_output_len=0, max_batch_size=max_batch_size
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


# Several calls in one process, as each of them would be in one of its own.
_SEVERAL = """
import sys
sys.path.insert(0, sys.argv[1])
from neuron_drivers.common import main
for folder in sys.argv[2:]:
    for name in [n for n in sys.modules if n.startswith("torch_neuronx")]:
        del sys.modules[name]
    if main(["build", folder + "/call.json", folder + "/result"]):
        sys.exit(folder)
"""


def start(words: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Python with the stand-ins, and without a hub."""
    environment = {**os.environ, "PYTHONPATH": str(STANDINS), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def write_work(call: Mapping[str, Any], work: Path) -> Path:
    """A build's folder, with the drivers and the call in it."""
    (work / "result").mkdir(parents=True)
    ship(work / "driver")
    (work / "call.json").write_text(json.dumps(call))
    return work


def run_driver(call: Mapping[str, Any], work: Path) -> subprocess.CompletedProcess[str]:
    """The driver as the compile stage starts it; its result is `work/result`."""
    write_work(call, work)
    return start([work / "driver", "build", work / "call.json", work / "result"])


def faults(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What a driver said that the user must hear."""
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    said = [json.loads(line[len(MARK) :]) for line in lines]
    return [row for row in said if row["event"] == "fault"]


def asked(
    folder: Path, wanted: Recipe, *, device: bool = True, family: str = "inf2"
) -> dict[str, Any]:
    """What the driver reads, without the versions that the stand-ins do not have."""
    call = lower_trace(wanted, facts(folder), family=family)
    plan = compile_plan(call, RELEASE, num_cores=1)
    document: dict[str, Any] = dict(request(plan, model=str(folder), device=device))
    return {**document, "versions": {}}


def build_encoders(
    wanted: Mapping[str, tuple[Path, Recipe]], root: Path
) -> dict[str, Path]:
    """
    Artifacts as the package stage lays them out, ready to be loaded.

    Args:
        wanted: Models and recipes, by a name.
        root: Where they are made, each in a folder of its name.
    """
    works = {
        name: write_work(asked(folder, recipe), root / f"{name}.work")
        for name, (folder, recipe) in wanted.items()
    }
    driver = next(iter(works.values())) / "driver"
    done = start(["-c", _SEVERAL, driver, *works.values()])
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        name: lay_out(works[name] / "result", folder, recipe, root / name)
        for name, (folder, recipe) in wanted.items()
    }


def lay_out(result: Path, folder: Path, wanted: Recipe, root: Path) -> Path:
    """An artifact's folder around the driver's result."""
    root.mkdir()
    result.rename(root / ENGINE_DIR)
    serving = trace_serving(wanted)
    (root / "lmi_build.json").write_text(json.dumps(serving.settings))
    (root / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return root


@contextmanager
def standin() -> Iterator[Any]:
    """The stand-in of torch-neuronx as this process's own, for a while."""
    before = {n: m for n, m in sys.modules.items() if n.startswith("torch_neuronx")}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(STANDINS))
    try:
        yield importlib.import_module("torch_neuronx")
    finally:
        sys.path.remove(str(STANDINS))
        for name in [n for n in sys.modules if n.startswith("torch_neuronx")]:
            del sys.modules[name]
        sys.modules.update(before)
