"""The table of serving systems: complete, sourced, and true to our own backends."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lmi_build import registry
from lmi_build.backends.neuronx.models import neuron_models
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.backends.vllm.models import architectures
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.catalog.onnxruntime_models import onnxruntime_models
from lmi_build.catalog.systems import (
    EVERY,
    FEATURES,
    Port,
    System,
    load_systems,
    parse_systems,
)
from lmi_build.catalog.vllm_releases import vllm_handlers, vllm_releases

TABLE = load_systems()
ROWS = list(TABLE.systems.values())
PORTS = [(row, port) for row in ROWS for port in row.ports]
# The systems that the field has, by their makers' spelling.
TITLES = {
    "TensorRT-LLM",
    "Transformers NeuronX",
    "vLLM",
    "LMI-Dist",
    "DeepSpeed",
    "Hugging Face Accelerate",
    "Hugging Face Transformers",
    "ONNX Runtime",
    "PyTorch AOTInductor",
    "TGI (Text Generation Inference)",
    "LoRAX",
    "llama.cpp",
    "llama-cpp-python",
    "CTranslate2",
    "candle",
    "burn (burn-lm)",
}


def port_of(name: str, device: str) -> Port:
    """One port of one system."""
    ports = TABLE.systems[name].ports
    return next(port for port in ports if port.device == device)


def families_of(classes: set[str]) -> set[str]:
    """The families that classes of transformers belong to."""
    return {name for name, known in TABLE.families.items() if set(known) & classes}


def test_every_system_of_the_field_has_its_row() -> None:
    assert {row.title for row in ROWS} == TITLES


@pytest.mark.parametrize(
    ("row", "port"), PORTS, ids=[f"{row.name}-{port.device}" for row, port in PORTS]
)
def test_rows_are_complete(row: System, port: Port) -> None:
    """Models, techniques, life and what to do are all there; so is plain float."""
    assert port.families
    assert "none" in port.techniques
    assert len(row.otherwise.split()) > 4
    assert row.life.note
    assert row.life.version


def test_every_source_is_dated_and_used() -> None:
    used = {row.life.source for row in ROWS}
    for _, port in PORTS:
        lists = (port.families, port.techniques, port.features, port.excluded)
        used |= {port.source, *(source for each in lists for source in each.values())}

    assert set(TABLE.sources.values()) == used
    for source in used:
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", source.date), source
        assert source.text


def test_families_are_families_of_one_class_each() -> None:
    """No class belongs to two families, and every family is loaded by somebody."""
    classes = [name for known in TABLE.families.values() for name in known]
    loaded = {name for _, port in PORTS for name in port.families} - {EVERY}

    assert len(classes) == len(set(classes))
    assert loaded == set(TABLE.families)


def test_t5_is_for_two_of_lmi_alone() -> None:
    """LMI's guide: T5 models are for LMI-Dist and TensorRT-LLM only."""
    lmi = {
        row.name
        for row, port in PORTS
        if port.container.startswith("djl-") and port.loads("t5")
    }

    assert lmi == {"tensorrt-llm", "lmi-dist"}


def test_lmi_dist_is_what_the_vllm_backend_says() -> None:
    """What it has beside vLLM's models stands in both tables, in float alone."""
    beside = {
        family
        for row in vllm_handlers().values()
        for family in families_of(set(row.beside))
    }
    port = port_of("lmi-dist", "gpu")
    last = vllm_releases()["djl-lmi-0.32.0"]
    known = families_of(set(architectures(last.lmi_dist)))

    assert beside == {"t5"}
    assert set(port.families) - beside <= known
    assert port.loads("t5")
    assert all("t5" not in families for families in port.only.values())
    assert {"gptq", "awq", "fp8", "bitsandbytes"} <= set(port.only)


def test_tensorrt_llm_is_what_its_backend_says() -> None:
    """Models and the techniques of each are those of the backend's own table."""
    port = port_of("tensorrt-llm", "gpu")
    known = {
        family: row.quantization
        for name, row in trtllm_models().items()
        for family in families_of({name})
    }

    assert set(port.families) == set(known)
    for technique, families in port.only.items():
        assert set(families) == {
            family for family, methods in known.items() if technique in methods
        }


@pytest.mark.parametrize(
    ("name", "loader"), [("transformers-neuronx", "tnx"), ("vllm", "optimum")]
)
def test_neuron_is_what_its_backend_says(name: str, loader: str) -> None:
    """What is built for a release's loader is what the backend's table has for it."""
    port = port_of(name, "neuron")
    release = neuron_releases()[port.release]
    known = {
        model
        for model, row in neuron_models().items()
        if row.supported(loader, release)
    }

    assert release.published
    assert {family for family in TABLE.families if port.loads(family)} >= known
    assert {family for family in TABLE.families if builds(port, family)} == known


def test_onnxruntime_is_what_its_backend_says() -> None:
    port = port_of("onnxruntime", "cpu")

    known = {row.name for row in onnxruntime_models().values() if not row.refused}
    assert set(port.built) == families_of(known)


def builds(port: Port, family: str) -> bool:
    """Whether lmi-build builds a family that the system loads."""
    return port.loads(family) and port.builds(family)


def test_backends_are_registered() -> None:
    named = {port.backend for _, port in PORTS if port.backend}

    assert named == set(registry.names(registry.BACKENDS))


def test_features_are_offered_by_somebody() -> None:
    assert {name for _, port in PORTS for name in port.features} == set(FEATURES)


def tables() -> dict[str, Any]:
    """A whole table with one system."""
    port = {
        "device": "cpu",
        "source": "s",
        "families": {"s": ["llama"]},
        "techniques": {"s": ["none", "gptq"]},
        "features": {"s": ["lora"]},
    }
    life = {"status": "ended", "version": "1", "note": "n", "source": "s"}
    row = {"title": "T", "kind": "server", "otherwise": "o", "life": life}
    return {
        "sources": {"s": {"text": "t", "date": "2026-01-01"}},
        "families": {"llama": ["LlamaForCausalLM"]},
        "systems": {"x": {**row, "ports": [port]}},
    }


def test_a_small_table_is_read() -> None:
    port = parse_systems(tables(), "f").systems["x"].ports[0]

    assert port.loads("llama")
    assert port.has("lora", "llama")
    assert not port.has("chat", "llama")
    assert not port.builds("llama")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("life", "status"), "dead", "`life.status` has unknown"),
        (("life", "source"), "y", "`life.source` has unknown"),
        (("kind",), "cloud", "`kind` has unknown"),
        (("titel",), "T", "unknown keys"),
        (("ports",), [], "one port for each"),
        (("ports", 0, "device"), "tpu", "`device` has unknown"),
        (("ports", 0, "source"), "y", "`source` has unknown"),
        (("ports", 0, "families"), {"s": ["lama"]}, "`families` has unknown"),
        (("ports", 0, "families"), {"y": ["llama"]}, "`families` has unknown"),
        (("ports", 0, "techniques"), {"s": ["gptq", "gptq"]}, "twice"),
        (("ports", 0, "only"), {"chat": ["llama"]}, "`only` has unknown"),
        (("ports", 0, "only"), {"lora": ["lama"]}, "`only` or `built` has unknown"),
        (("ports", 0, "technique_compute"), {"awq": "8.0"}, "has unknown ['awq']"),
    ],
)
def test_a_wrong_row_is_named(path: tuple[Any, ...], value: Any, said: str) -> None:
    """A fault says file, row and key."""
    broken = tables()
    place = broken["systems"]["x"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value

    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parse_systems(broken, "f.toml")

    assert "f.toml: [systems.x]" in str(caught.value)
