"""A sentence encoder from a recipe to answers over HTTP, with a stand-in toolchain."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("starlette.testclient")

import neuron_machine
from encoders import float_states, make_encoder, pooled
from lmi_build.api import build, load_recipe, make_plan, write_artifact
from lmi_build.events import StageNote
from lmi_build.package.engine import load_engine
from lmi_build.package.properties import parse_properties
from lmi_build.serve.app import Service, make_app
from lmi_build.toolchains.versions import _version
from lmi_build.values.settings import settings_from_environ
from lmi_build.verify.integrity import refuse_if_damaged
from neuron_encoders import standin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.events import Event
    from lmi_build.values.settings import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
RELEASE = "djl-neuronx-0.30.0"
VARIABLES = (
    "PATH",
    "PYTHONPATH",
    "FAULT",
    "STANDIN_TNX",
    "STANDIN_CC",
    "STANDIN_CORES",
)
RECIPE = f"""\
schema: lmi-build/v1
name: tiny-encoder
model:
  source: ./model
bounds:
  max_input_len: 24
  max_output_len: 0
  max_batch_size: 3
compile:
  backend: neuronx
  target: ml.inf2.xlarge
  release: {RELEASE}
  options: {{length_buckets: [8, 24]}}
"""


class Built:
    """The artifact, the float model and where they came from."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        wish = {"pooling": "mean", "normalize": True, "max_seq_length": 16}
        self.model = make_encoder(root / "model", sentence=wish)
        self.events: list[Event] = []
        (root / "recipe.yaml").write_text(RECIPE)
        plan = make_plan(load_recipe(root / "recipe.yaml"), settings)
        result = build(plan, settings, emit=self.events.append)
        self.tree, _ = write_artifact(
            result, plan.artifacts[0].name, root / "artifacts", settings
        )

    def wanted(self, texts: list[str]) -> np.ndarray:
        """What the float model means, re-derived in float64."""
        rows = [float_states(self.model, self.root / "model", text) for text in texts]
        return np.array([pooled(row, ("mean",), normalize=True) for row in rows])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    root = tmp_path_factory.mktemp("encoder")
    with pytest.MonkeyPatch.context() as patch:
        site = neuron_machine.install(
            root / "machine", patch, release=RELEASE, instance="inf2.xlarge"
        )
        # The real library reads the model; only its version is the release's.
        (site / "transformers.py").unlink()
        patch.delenv("STANDIN_WITHOUT_TRACE")
        patch.setenv("LMI_BUILD_RUNNER", "local")
        settings = settings_from_environ(os.environ)
        # The planner looks for the toolchain beside itself, a worker beside itself.
        patch.syspath_prepend(str(site))
        # What it saw of this environment before is not what it would see now.
        _version.cache_clear()
        settings = replace(
            settings,
            cache_dir=root / "cache",
            worker_environment={name: os.environ[name] for name in VARIABLES},
        )
        found = Built(root, settings)
    _version.cache_clear()
    with standin():
        yield found


def test_the_artifact_holds_its_graphs_and_what_serves_them(built: Built) -> None:
    """Nothing at its root makes the front end look for a model of its own."""
    files = {
        path.relative_to(built.tree).as_posix()
        for path in built.tree.rglob("*")
        if path.is_file()
    }
    properties = parse_properties((built.tree / "serving.properties").read_bytes())

    assert files >= {
        "engine/model.8.pt",
        "engine/model.24.pt",
        "engine/neuron.json",
        "engine/reference.json",
        "lmi_build.json",
        "model.py",
        "tokenizer.json",
    }
    assert "config.json" not in files
    assert properties["engine"] == "Python"
    assert properties["option.entryPoint"] == "model.py"
    assert properties["option.rolling_batch"] == "disable"
    assert properties["batch_size"] == "3"


def test_texts_become_the_float_models_vectors_over_http(built: Built) -> None:
    """Through `serve`, which runs the handler that the artifact ships."""
    from starlette.testclient import TestClient

    manifest = refuse_if_damaged(built.tree)
    loaded = load_engine(built.tree, manifest)
    client = TestClient(make_app(Service(loaded, manifest), loaded))
    texts = ["a quick fox", "one more word one more word", "x"]
    answer = client.post("/invocations", json={"inputs": texts})
    found: Any = answer.json()

    assert answer.status_code == 200
    assert np.abs(np.array(found) - built.wanted(texts)).max() < 1e-5
    for body, status in (
        ({"inputs": "a " * 30}, 413),
        ({"inputs": "a", "parameters": {"top_k": 1}}, 400),
        ({"inputs": "a", "stream": True}, 400),
    ):
        assert client.post("/invocations", json=body).status_code == status


def test_verify_measured_graphs_and_float_model(built: Built) -> None:
    """The report is that of a stage of the build."""
    record = json.loads((built.tree / "engine" / "neuron.json").read_text())
    notes = {
        event.code: event.message
        for event in built.events
        if isinstance(event, StageNote) and event.stage.endswith("/verify")
    }

    assert record["compared"]["min_cosine"] > 1 - 1e-5
    assert record["pooling"] == ["mean"]
    assert record["normalize"] is True
    assert set(notes) >= {"verify.measured", "neuronx.encoder-untrained"}
    assert "on 8 texts" in notes["verify.measured"]
    assert "texts of 16 tokens, the bound is 24" in notes["neuronx.encoder-untrained"]
