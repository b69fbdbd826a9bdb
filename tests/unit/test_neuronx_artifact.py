"""What is found wrong with an artifact of Transformers NeuronX, from its files."""

from __future__ import annotations

import json

import pytest

from lmi_build.backends.neuronx.artifact_checks import NeuronExpected, artifact_problems
from lmi_build.backends.neuronx.artifact_folder import read_neuron_artifact
from lmi_build.backends.neuronx.layout import artifact_layout, neuron_block
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.errors import SourceInvalid, VerifyFailed
from neuron_folders import (
    TNX_RELEASES,
    folder_of,
    header_of,
    neuron_call,
    neuron_texts,
    safetensors,
    sharded,
)

NEW = neuron_releases()["djl-neuronx-0.30.0"]
LAYER = "compiled/decoder_layer_1.safetensors"
EXPECTED = NeuronExpected(
    neuronx_cc=NEW.neuronx_cc,
    num_neffs=2,
    num_layers=2,
    presharded=True,
    release=NEW.name,
    block=neuron_block(NEW, neuron_call(NEW).arguments),
)


def codes(
    texts: dict[str, bytes], expected: NeuronExpected = EXPECTED
) -> list[tuple[str, str]]:
    """Code and message of every problem of a folder."""
    artifact = read_neuron_artifact(folder_of(texts), header=header_of(texts))
    return [(p.code, p.message) for p in artifact_problems(artifact, expected)]


@pytest.mark.parametrize("release", TNX_RELEASES, ids=lambda row: row.version)
def test_a_whole_artifact_has_no_problem(release: object) -> None:
    """Neither its graphs nor its weights, on any release."""
    row = next(found for found in TNX_RELEASES if found is release)
    layout = artifact_layout(row, num_layers=2)
    expected = NeuronExpected(
        neuronx_cc=row.neuronx_cc,
        num_neffs=2,
        num_layers=2,
        presharded=layout.presharded,
        release=row.name,
        block=neuron_block(row, neuron_call(row).arguments),
    )
    texts = neuron_texts(row)

    assert codes(texts, expected) == []
    assert set(layout.files) <= set(texts)


def test_a_graph_is_missing() -> None:
    """It is counted, and named from the record."""
    texts = neuron_texts(NEW)
    name = next(path for path in texts if path.endswith(".neff"))
    del texts[name]
    found = codes(texts)

    assert [code for code, _ in found] == ["neuronx.neff-missing"] * 2
    assert "has 1 NEFFs, 2 graphs" in found[0][1]
    assert name.split("/")[1].removesuffix(".neff") in found[1][1]


def test_a_graph_too_many() -> None:
    """One of another build is named."""
    texts = neuron_texts(NEW)
    texts[f"compiled/{'a' * 20}.neff"] = b"neff"

    assert [code for code, _ in codes(texts)] == [
        "neuronx.neff-missing",
        "neuronx.neff-extra",
    ]


@pytest.mark.parametrize("name", ["graph.neff", "0" * 20 + ".neff"])
def test_a_graph_that_is_none(name: str) -> None:
    """An odd name, or nothing inside."""
    texts = neuron_texts(NEW)
    texts[f"compiled/{name}"] = b"" if name.startswith("0") else b"neff"

    assert "neuronx.neff-broken" in {code for code, _ in codes(texts)}


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("compiled/VERSION", b"2.16.372.0", ("2.16.372.0", "2.15.141.0")),
        ("compiled/VERSION", None, ("VERSION",)),
    ],
)
def test_another_compiler(
    name: str, data: bytes | None, words: tuple[str, ...]
) -> None:
    """Both versions are said."""
    texts = neuron_texts(NEW)
    if data is None:
        del texts[name]
    else:
        texts[name] = data
    found = codes(texts)

    assert {code for code, _ in found} == {"neuronx.version-differs"}
    assert all(word in found[0][1] for word in words)


def test_another_release_built_it() -> None:
    """The record says for which."""
    texts = neuron_texts(NEW)
    record = json.loads(texts["neuron.json"])
    record["release"] = "djl-neuronx-0.32.0"
    texts["neuron.json"] = json.dumps(record).encode()

    assert [code for code, _ in codes(texts)] == ["neuronx.version-differs"]


def test_the_block() -> None:
    """Missing, or of other numbers."""
    texts = neuron_texts(NEW, neuron_call(NEW, batch=8))
    found = codes(texts)
    assert [code for code, _ in found] == ["neuronx.block-differs"]
    assert "neuron.batch_size` 8, 4 was planned" in found[0][1]
    texts["config.json"] = b'{"num_hidden_layers": 2}'

    assert [code for code, _ in codes(texts)] == ["neuronx.block-differs"]


def test_a_build_mark_is_no_difference() -> None:
    """The compiler names itself with a mark after a plus."""
    texts = neuron_texts(NEW)
    marked = f"{NEW.neuronx_cc}+abcdef"
    texts["compiled/VERSION"] = marked.encode()
    config = json.loads(texts["config.json"])
    config["neuron"]["compiler_version"] = marked
    texts["config.json"] = json.dumps(config).encode()

    assert codes(texts) == []


def test_weights_at_the_root() -> None:
    """They would make the loader compile."""
    texts = neuron_texts(NEW)
    texts["model.safetensors"] = safetensors({"w": (2, 2)})

    assert [code for code, _ in codes(texts)] == ["neuronx.root-weights"]


@pytest.mark.parametrize(
    ("name", "words"),
    [(LAYER, "block 1"), ("compiled/DecoderLMHead.safetensors", "the head")],
)
def test_weights_are_missing(name: str, words: str) -> None:
    """Of a block or of the head."""
    texts = neuron_texts(NEW)
    del texts[name]
    found = codes(texts)

    assert [code for code, _ in found] == ["neuronx.weights-missing"]
    assert words in found[0][1]


def test_weights_that_are_not_marked() -> None:
    """The configuration beside them must say that they are split."""
    texts = neuron_texts(NEW)
    texts["compiled/config.json"] = b"{}"

    assert [code for code, _ in codes(texts)] == ["neuronx.weights-missing"]


@pytest.mark.parametrize(
    ("shapes", "code", "words"),
    [
        (sharded(1, ("w",)), "neuronx.weights-missing", "1 parts, 2 cores"),
        (sharded(3, ("w",)), "neuronx.weights-differ", "3 parts for 2 cores"),
        ({"w*0": (4, 8), "w*1": (4, 4)}, "neuronx.weights-differ", "[4, 4]"),
        ({"w": (4, 8)}, "neuronx.weights-differ", "no tensor's part"),
        ({"w*x": (4, 8)}, "neuronx.weights-differ", "no tensor's part"),
    ],
)
def test_parts_of_a_tensor(
    shapes: dict[str, tuple[int, ...]], code: str, words: str
) -> None:
    """One for each core, all alike."""
    texts = neuron_texts(NEW)
    texts[LAYER] = safetensors(shapes)
    found = codes(texts)

    assert [found_code for found_code, _ in found] == [code]
    assert words in found[0][1]


def test_a_tensor_that_the_model_does_not_have() -> None:
    """It is kept as one part of nothing, for one core."""
    texts = neuron_texts(NEW)
    texts[LAYER] = safetensors({**sharded(2, ("w",)), "extra_parameter0*0": (0,)})

    assert codes(texts) == []


def test_blocks_of_another_model() -> None:
    """More of them than it has."""
    texts = neuron_texts(NEW)
    texts["compiled/decoder_layer_2.safetensors"] = texts[LAYER]

    assert [code for code, _ in codes(texts)] == ["neuronx.weights-differ"]


def test_what_cannot_be_read() -> None:
    """No configuration, and a header that is cut off."""
    texts = neuron_texts(NEW)
    texts[LAYER] = texts[LAYER][:9]
    with pytest.raises(SourceInvalid):
        codes(texts)
    texts = neuron_texts(NEW)
    del texts["config.json"]
    with pytest.raises(VerifyFailed) as caught:
        codes(texts)

    assert caught.value.code == "engine.unreadable"
