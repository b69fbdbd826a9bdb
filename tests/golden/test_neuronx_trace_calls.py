"""Calls of `torch_neuronx.trace`, and what serves what they make."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmi_build.backends.neuronx.compile_plan import compile_plan
from lmi_build.backends.neuronx.trace import (
    lower_trace,
    trace_device_needed,
    trace_notes,
    trace_serving,
)
from lmi_build.backends.neuronx.trace_problems import trace_problems
from lmi_build.catalog.instances import instances
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.package.layouts import djl_properties
from lmi_build.package.properties import render_properties
from lmi_build.values.recipe import QuantSpec
from neuron_encoders import MINILM, ROBERTA, model, recipe

HERE = Path(__file__).parent / "neuronx-trace-calls"
RELEASES = [name for name, row in neuron_releases().items() if "trace" in row.loaders]
SCORES = {**MINILM, "architectures": ["BertForSequenceClassification"]}
CASES: dict[str, dict[str, Any]] = {
    "float": {},
    "rounded products": {"options": {"auto_cast": "matmult"}},
    "int8": {"quantize": QuantSpec(method="int8")},
    "awq": {"quantize": QuantSpec(method="awq")},
    "one length of RoBERTa": {
        "config": ROBERTA,
        "options": {"length_buckets": [256], "pooling": ["mean", "cls"]},
        "max_batch_size": 1,
    },
    "scores": {"config": SCORES, "files": ("config.json", "tokenizer.json")},
}


def case_text(name: str, case: dict[str, Any]) -> list[str]:
    """The parameters of the stage and the properties, or why there are none."""
    case = {"max_input_len": 256, "max_batch_size": 8, **case}
    config = {"config": case.pop("config", MINILM)}
    files = {"files": case.pop("files")} if "files" in case else {}
    found = model(**config, **files)
    wanted = recipe(case.pop("options", {}), **case)
    instance = instances()["ml.inf2.xlarge"]
    refused = list(trace_problems(wanted, found, instance=instance))
    if refused:
        return [f"refused: {p.code}: {p.message}\nhint: {p.hint}" for p in refused]
    release = neuron_releases()[name]
    plan = compile_plan(
        lower_trace(wanted, found, family="inf2"),
        release,
        num_cores=1,
        device_needed=trace_device_needed(release),
    )
    properties = djl_properties(
        replace(wanted, compile=replace(wanted.compile, release=name)),
        trace_serving(wanted),
    )
    notes = [f"note: {note.code}: {note.message}" for note in trace_notes(wanted)]
    return [
        json.dumps(plan.call, sort_keys=True),
        f"versions: {json.dumps(dict(plan.versions))}",
        f"device needed: {plan.device_needed}",
        *notes,
        render_properties(properties).decode().rstrip(),
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_calls(release: str, *, update_golden: bool) -> None:
    """Every release, with and without rounding, for each task."""
    path = HERE / f"{release}.txt"
    parts = []
    for title, case in CASES.items():
        parts += [f"== {title}", *case_text(release, case)]
    text = "\n".join(parts) + "\n"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    assert text == path.read_text()
