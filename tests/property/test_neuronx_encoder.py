"""A text's vector is its own: no length, batch or neighbour changes it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoders import make_encoder
from lmi_build.backends.neuronx.trace import graph_bytes, length_buckets, lower_trace
from lmi_build.package.handlers import neuronx_encoder as handler
from neuron_encoders import build_encoders, facts, recipe, standin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
# Two orders of adding the same float32 numbers.
CLOSE = 1e-5
LONGEST = 24
SEVERAL = {"length_buckets": [4, 9, LONGEST]}
# Between one and 22 letters, so that with two special tokens every text fits.
WORDS = st.lists(st.sampled_from("abcdefgh.!?0123"), min_size=0, max_size=LONGEST - 2)
TEXTS = st.lists(WORDS.map(" ".join), min_size=1, max_size=7)


class Engines:
    """One model, with several lengths in batches and with one length alone."""

    def __init__(self, root: Path) -> None:
        folder = root / "model"
        make_encoder(folder, sentence={"pooling": "mean", "normalize": True})
        wanted = {
            "several": (folder, recipe(SEVERAL, max_batch_size=3)),
            "one": (folder, recipe({"length_buckets": [LONGEST]}, max_batch_size=1)),
        }
        roots = build_encoders(wanted, root)
        self.several = handler.Engine(roots["several"])
        self.one = handler.Engine(roots["one"])
        self.facts = facts(folder)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    import torch

    # These models are too small to be worth a second thread.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with standin():
        yield Engines(tmp_path_factory.mktemp("engines"))
    torch.set_num_threads(before)


FEW = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FEW
@given(texts=TEXTS)
@example(texts=["", "a " * 22, "a"])
@example(texts=["a a", "a a a", "a a a a a a a", "a a a a a a a a"])
def test_neither_length_nor_neighbours_change_an_answer(
    engines: Engines, texts: list[str]
) -> None:
    """Padded on the right, below, or not at all: the vector is the same."""
    together = np.array(engines.several.generate(texts, {}))
    alone = np.array([engines.one.generate(text, {})[0] for text in texts])

    assert np.abs(together - alone).max() < CLOSE
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < CLOSE


@FEW
@given(texts=TEXTS, seed=st.randoms())
def test_the_order_of_texts_is_the_order_of_answers(
    engines: Engines, texts: list[str], seed: object
) -> None:
    """Inside they are sorted by length."""
    places = list(range(len(texts)))
    seed.shuffle(places)  # type: ignore[attr-defined]
    found = engines.several.generate(texts, {})
    moved = engines.several.generate([texts[place] for place in places], {})

    assert np.abs(np.subtract([found[place] for place in places], moved)).max() < CLOSE


@FEW
@given(groups=st.lists(TEXTS, min_size=1, max_size=4))
def test_joined_requests_answer_as_if_each_came_alone(
    engines: Engines, groups: list[list[str]]
) -> None:
    """The front end joins what arrives at the same time."""
    engine = engines.several
    requests = [
        handler.read_request({"inputs": texts}, engine.task) for texts in groups
    ]
    joined = engine.answer([(row, engine.tokenize(row)) for row in requests])

    assert [len(answer) for answer in joined] == [len(texts) for texts in groups]
    for texts, answer in zip(groups, joined, strict=True):
        alone = engine.generate(texts, {})

        assert np.abs(np.subtract(answer, alone)).max() < CLOSE


@given(longest=st.integers(1, 4096))
def test_lengths_rise_and_end_at_the_bound(longest: int) -> None:
    """And none is more than twice the one before, so that half a graph is used."""
    found = length_buckets(longest)

    assert found[-1] == longest
    assert list(found) == sorted(set(found))
    assert all(b <= 2 * a for a, b in pairwise(found))
    assert len(found) == 1 or found[0] == 128


@FEW
@given(longest=st.integers(1, 46), batch=st.integers(1, 64), more=st.integers(0, 8))
def test_what_is_built_grows_with_the_bounds(
    engines: Engines, longest: int, batch: int, more: int
) -> None:
    """Bytes never fall with a bound, and the call names each graph once."""
    wanted = recipe(max_input_len=longest, max_batch_size=batch)
    larger = recipe(max_input_len=longest + more, max_batch_size=batch)
    call = lower_trace(wanted, engines.facts, family="trn1")
    files = [step["file"]["path"] for _, step in call.steps]

    assert graph_bytes(wanted, engines.facts) <= graph_bytes(larger, engines.facts)
    assert len(set(files)) == len(files) == call.num_graphs
    assert call.arguments["batch_size"] == batch
