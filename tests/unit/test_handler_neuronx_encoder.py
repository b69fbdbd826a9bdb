"""What the encoder's handler takes from a request, and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.package.handlers.neuronx_encoder import (
    CLASSIFICATION,
    EMBEDDING,
    MAX_TEXTS,
    TOKENS,
    BoundExceeded,
    EngineBroken,
    InvalidRequest,
    Parameters,
    Request,
    Text,
    _read_bounds,
    _read_graphs,
    _read_json,
    read_request,
)

if TYPE_CHECKING:
    from pathlib import Path


def request(inputs: Any, **parameters: Any) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": parameters}


@pytest.mark.parametrize("task", [EMBEDDING, CLASSIFICATION, TOKENS])
def test_a_text_and_a_list_of_texts_are_taken(task: str) -> None:
    assert read_request({"inputs": "a"}, task) == Request((Text("a"),), Parameters())
    found = read_request(request(["a", ""], truncate=True), task)

    assert found == Request((Text("a"), Text("")), Parameters(truncate=True))


def test_pairs_are_for_classification() -> None:
    """As rerankers and models of entailment are asked."""
    pair = {"text": "a", "text_pair": "b"}
    found = read_request(request([pair, {"text": "c"}, "d"], top_k=2), CLASSIFICATION)

    assert found.texts == (Text("a", "b"), Text("c"), Text("d"))
    assert found.parameters.top_k == 2
    with pytest.raises(InvalidRequest, match="a text or a list of texts"):
        read_request(request(pair), EMBEDDING)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ([], "JSON object"),
        ("a", "JSON object"),
        ({}, "`inputs` is missing"),
        ({"inputs": "a", "input": "b"}, "unknown field `input`"),
        ({"inputs": []}, "no texts"),
        ({"inputs": None}, "must be texts"),
        ({"inputs": ["a", 3]}, "must be texts"),
        ({"inputs": [["a", "b"]]}, "must be texts"),
        ({"inputs": {"text": 1}}, "must be texts"),
        ({"inputs": {"text_pair": "b"}}, "must be texts"),
        ({"inputs": {"text": "a", "pair": "b"}}, "must be texts"),
        ({"inputs": "a", "parameters": 3}, "must be an object"),
        (request("a", truncation=True), "did you mean `truncate`"),
        (request("a", truncate="yes"), "true or false"),
        (request("a", top_k=0), "1 or more"),
        (request("a", top_k=True), "1 or more"),
        (request("a", max_new_tokens=3), "unknown parameter"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(document: Any, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        read_request(document, CLASSIFICATION)


def test_labels_are_not_asked_of_vectors() -> None:
    with pytest.raises(InvalidRequest, match="top_k"):
        read_request(request("a", top_k=1), EMBEDDING)


def test_one_request_has_a_largest_number_of_texts() -> None:
    assert len(read_request({"inputs": ["a"] * MAX_TEXTS}, EMBEDDING).texts) == 512
    with pytest.raises(BoundExceeded, match=r"513 texts, at most 512"):
        read_request({"inputs": ["a"] * (MAX_TEXTS + 1)}, EMBEDDING)


def test_null_parameters_are_none() -> None:
    assert read_request({"inputs": "a", "parameters": None}, TOKENS).parameters == (
        Parameters()
    )
    assert read_request(request("a", truncate=None), TOKENS).parameters == Parameters()


class TestFiles:
    """An artifact whose files do not fit together does not start."""

    BOUNDS = {"max_input_len": 24, "max_batch_size": 3}  # noqa: RUF012 - read only

    def test_graphs_come_by_length(self) -> None:
        """Rising, whatever the order of the file."""
        record = {"graphs": {"24": "b.pt", "8": "a.pt"}, "batch_size": 3}

        assert list(_read_graphs(record, self.BOUNDS).items()) == [
            (8, "a.pt"),
            (24, "b.pt"),
        ]

    @pytest.mark.parametrize(
        ("record", "match"),
        [
            ({}, "names no graphs"),
            ({"graphs": {}}, "names no graphs"),
            ({"graphs": {"16": "a.pt"}, "batch_size": 3}, "16 tokens, the bounds"),
            ({"graphs": {"24": "a.pt"}, "batch_size": 4}, "take 4 texts"),
        ],
    )
    def test_graphs_of_other_bounds_are_refused(
        self, record: dict[str, Any], match: str
    ) -> None:
        """A shorter one would refuse what was promised, a longer one waste time."""
        with pytest.raises(EngineBroken, match=match):
            _read_graphs(record, self.BOUNDS)

    @pytest.mark.parametrize("bounds", [None, {}, {"max_input_len": 0}, {"x": 1}])
    def test_bounds_must_be_there(self, bounds: Any) -> None:
        """Without them nothing was promised."""
        with pytest.raises(EngineBroken, match="bound"):
            _read_bounds({"bounds": bounds})

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        """So is one that is missing."""
        path = tmp_path / "neuron.json"
        for text in ("{", "[]"):
            path.write_text(text)
            with pytest.raises(EngineBroken, match=r"neuron\.json"):
                _read_json(path)
        path.write_text(json.dumps({"a": 1}))

        assert _read_json(path) == {"a": 1}
        with pytest.raises(EngineBroken, match=r"other\.json"):
            _read_json(tmp_path / "other.json")
