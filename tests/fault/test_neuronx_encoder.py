"""Compilations of encoders that go wrong say how, and leave nothing behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import neuron_machine
from encoders import make_encoder
from lmi_build.backends.neuronx.compile_plan import compile_plan
from lmi_build.backends.neuronx.compile_worker import run
from lmi_build.backends.neuronx.trace import lower_trace, trace_expected
from lmi_build.errors import LmiBuildError
from lmi_build.events import ignore
from neuron_encoders import RELEASE, facts, recipe

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.spi import Job

SENTENCE = {"pooling": "mean", "normalize": True}


def job_of(
    root: Path, patch: pytest.MonkeyPatch, *, fault: str = "", **changes: Any
) -> Job:
    """The compile stage of a tiny encoder on a machine with a device."""
    site = neuron_machine.install(
        root / "machine",
        patch,
        release=RELEASE.name,
        instance="inf2.xlarge",
        fault=fault,
    )
    # The real library reads the model; only its version is the release's.
    (site / "transformers.py").unlink()
    patch.delenv("STANDIN_WITHOUT_TRACE")
    folder = root / "model"
    make_encoder(folder, sentence=SENTENCE)
    wanted = recipe({"length_buckets": [24]})
    call = lower_trace(wanted, facts(folder), family="inf2")
    plan = compile_plan(call, RELEASE, num_cores=1, expected=trace_expected(call))
    job = neuron_machine.neuron_job(root, plan, folder, target="ml.inf2.xlarge")
    for name, text in changes.items():
        (folder / name).write_text(text)
    return job


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("wrong-graph", "neuronx.differs", "cosine -1.0000 to the float model"),
        ("killed", "neuronx.raised", "neuronx-cc failed with -9"),
    ],
)
def test_a_broken_compiler_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: str, words: str
) -> None:
    """A graph that computes something else is not kept, whoever would serve it."""
    job = job_of(tmp_path, monkeypatch, fault=fault)
    with pytest.raises(LmiBuildError) as caught:
        run(job, ignore)

    assert caught.value.code == code
    assert words in caught.value.message
    assert list(job.out.iterdir()) == []


def test_a_layer_that_the_graph_would_lack_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner does not read the file; the driver does before it compiles."""
    rows = json.dumps(
        [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        ]
    )
    job = job_of(tmp_path, monkeypatch, **{"modules.json": rows})
    with pytest.raises(LmiBuildError) as caught:
        run(job, ignore)

    assert caught.value.code == "neuronx.sentence-module"
    assert "Dense" in caught.value.message
    assert list(job.out.iterdir()) == []
