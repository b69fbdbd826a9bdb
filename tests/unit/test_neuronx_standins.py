"""The packages that stand for Neuron's have the signatures of the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lmi_build.backends.neuronx.signatures import signatures

STANDINS = Path(__file__).parents[1] / "neuron_standins"
VERSIONS = {"0.12": "0.12.313", "0.13": "0.13.380"}
CLASSES = {
    "bloom": "BloomForSampling",
    "gpt2-context": "GPT2ForSamplingWithContextBroadcasting",
    "gptj": "GPTJForSampling",
    "gpt_neox": "GPTNeoXForSampling",
    "llama": "LlamaForSampling",
    "mistral": "MistralForSampling",
    "mixtral": "MixtralForSampling",
    "opt": "OPTForSampling",
}
# Says each constructor's arguments, and what NeuronConfig does with names.
_SHOW = """\
import inspect, json, sys
from transformers_neuronx import config, models
asked = json.loads(sys.argv[1])
plain = (str, int, float, bool, type(None), list)
def arguments(found):
    rows = {}
    for name, row in inspect.signature(found.__init__).parameters.items():
        if name in ("self", "config") or row.kind is row.VAR_KEYWORD:
            continue
        if isinstance(row.default, plain):
            rows[name] = row.default
        else:
            rows[name] = "<object>"
    return rows
said = {name: arguments(getattr(models, name)) for name in asked["classes"]}
for name in asked["configs"]:
    said[name] = arguments(getattr(config, name))
refused = []
for name in asked["fields"]:
    try:
        config.NeuronConfig(**{name: None})
    except AssertionError as error:
        # Another assertion is about the value, and the name is known.
        if "Unexpected" in str(error):
            refused.append(name)
    except Exception:
        pass
print(json.dumps({"arguments": said, "refused": refused}))
"""


def every_field() -> set[str]:
    """Fields of NeuronConfig in any version."""
    rows = signatures().values()
    return {name for known in rows for name in known.configs["NeuronConfig"]}


@cache
def said(row: str) -> dict[str, Any]:
    """What the stand-in of one version says of itself."""
    asked = {
        "classes": sorted(CLASSES.values()),
        "configs": ["QuantizationConfig", "KVCacheQuantizationConfig"],
        "fields": sorted({*every_field(), "fuse_qvk", "tensor_parallel"}),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SHOW, json.dumps(asked)],
        env={
            **os.environ,
            "PYTHONPATH": str(STANDINS),
            "STANDIN_TNX": VERSIONS[row],
            "STANDIN_WITHOUT_TRACE": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("row", VERSIONS)
@pytest.mark.parametrize("model_type", CLASSES)
def test_constructors_take_what_the_real_ones_take(row: str, model_type: str) -> None:
    """Names, in any order, and the defaults that are plain values."""
    real = signatures()[row].classes[model_type]
    ours = said(row)["arguments"][CLASSES[model_type]]

    assert set(ours) == set(real)
    for name, field in real.items():
        if field.kind != "object" and not field.required:
            assert ours[name] == field.default, name


@pytest.mark.parametrize("row", VERSIONS)
def test_neuron_config_refuses_what_the_real_one_refuses(row: str) -> None:
    """Every field that any version has, and two that none has."""
    real = signatures()[row].configs["NeuronConfig"]
    refused = set(said(row)["refused"])

    assert {"fuse_qvk", "tensor_parallel"} <= refused
    assert refused.isdisjoint(real)
    every = {
        n for known in signatures().values() for n in known.configs["NeuronConfig"]
    }
    assert {name for name in every if name not in real} <= refused


@pytest.mark.parametrize("row", VERSIONS)
@pytest.mark.parametrize("name", ["QuantizationConfig", "KVCacheQuantizationConfig"])
def test_configurations_take_what_the_real_ones_take(row: str, name: str) -> None:
    """The same names with the same defaults."""
    real = signatures()[row].configs[name]
    ours = said(row)["arguments"][name]

    assert set(ours) == set(real)
    assert {n: ours[n] for n, f in real.items() if not f.many} == {
        n: f.default for n, f in real.items() if not f.many
    }
