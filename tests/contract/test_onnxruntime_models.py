"""Every architecture of the table gives the logits of transformers, or is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

from autogptq import quantize_folder
from lmi_build.catalog.onnxruntime_models import onnxruntime_models
from lmi_build.package.handlers import onnxruntime_slots
from lmi_build.package.handlers.onnxruntime_genai import GeneratorSlots
from lmi_build.package.handlers.onnxruntime_slots import GraphSlots
from onnxruntime_engines import (
    EXACT,
    SMALL,
    compile_engine,
    greedy,
    load_engine,
    make_model,
    reference,
    relative_error,
)

if TYPE_CHECKING:
    from pathlib import Path

IDS = [5, 17, 300, 42, 7, 9, 411, 23, 250, 99, 12, 3, 77]
RELATIVE_ERROR = 5e-6
ROWS = onnxruntime_models().values()
BUILT = [row.model_type for row in ROWS if not row.refused]
PACKED = [row.model_type for row in ROWS if row.packed]


def test_the_table_is_tried_whole() -> None:
    assert {row.model_type for row in ROWS} == set(SMALL)


@pytest.mark.parametrize("model_type", BUILT)
def test_a_float_engine_is_the_model(tmp_path: Path, model_type: str) -> None:
    """Windows, scales, biases and kinds of norms are those of transformers."""
    model = make_model(tmp_path / "model", model_type, SMALL[model_type])
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    net, engine = reference(model), load_engine(out)

    assert relative_error(net, engine, IDS) < RELATIVE_ERROR
    steps = list(engine.stream(IDS, {"max_new_tokens": 6}))
    assert greedy(net, IDS, len(steps)) == [step.token_id for step in steps]


@pytest.mark.parametrize("model_type", PACKED)
def test_packed_weights_are_taken_exactly(tmp_path: Path, model_type: str) -> None:
    """The engine computes with the values that a GPTQ checkpoint dequantizes to."""
    model = make_model(tmp_path / "model", model_type, SMALL[model_type])
    dense = quantize_folder(model, tmp_path / "checkpoint")
    out, _ = compile_engine(tmp_path / "checkpoint", tmp_path / "job", **EXACT)

    assert len(dense) >= 2 * 6
    error = relative_error(reference(model, dense), load_engine(out), IDS)
    assert error < RELATIVE_ERROR


@pytest.mark.parametrize("model_type", [row.model_type for row in ROWS if row.refused])
def test_what_is_refused_is_wrong(tmp_path: Path, model_type: str) -> None:
    """An architecture comes off the list of refusals when the builder has it right."""
    model = make_model(tmp_path / "model", model_type, SMALL[model_type])
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)

    assert relative_error(reference(model), load_engine(out), IDS) > 0.05


TOGETHER = (IDS, [23, 250, 99], [8], [2, 17, 2, 40], [5, 2], [300, 7, 42, 42], [4] * 13)


def test_a_window_that_is_never_left_is_none(tmp_path: Path) -> None:
    """The engine is that of the model without one, byte by byte."""
    found = []
    for name, window in (("wide", 40), ("none", None)):
        extra = {"sliding_window": window}
        model = make_model(tmp_path / name / "model", "mistral", extra)
        out, _ = compile_engine(model, tmp_path / name / "job", **EXACT)
        found.append((out / "model.onnx").read_bytes())

    assert found[0] == found[1]


def test_a_short_request_fits_a_long_window(tmp_path: Path) -> None:
    """The cache is as long as the window, however short the request."""
    model = make_model(tmp_path / "model", "mistral", {"sliding_window": 30})
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    net, engine = reference(model), load_engine(out)
    steps = list(engine.stream(IDS[:3], {"max_new_tokens": 4}))

    assert relative_error(net, engine, IDS[:5]) < RELATIVE_ERROR
    assert greedy(net, IDS[:3], len(steps)) == [step.token_id for step in steps]


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mistral"])
def test_pieces_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """A prompt read in pieces, with a window or without, gives transformers' logits."""
    monkeypatch.setattr(onnxruntime_slots, "PIECE", 4)
    model = make_model(tmp_path / "model", model_type, SMALL[model_type])
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    engine = load_engine(out)

    assert isinstance(engine.slots, GraphSlots)
    assert relative_error(reference(model), engine, IDS) < RELATIVE_ERROR


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mistral", "lfm2"])
def test_a_batch_is_each_of_its_prompts(tmp_path: Path, model_type: str) -> None:
    """Same tokens, texts and reasons together and alone; padding changes nothing."""
    model = make_model(tmp_path / "model", model_type, SMALL[model_type])
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    engine = load_engine(out)
    for document in (
        {"max_new_tokens": 9},
        {"max_new_tokens": 7, "temperature": 2.0, "top_k": 40, "seed": 3},
        {"max_new_tokens": 9, "repetition_penalty": 1.7},
    ):
        texts = [engine.begin(ids, document) for ids in TOGETHER]
        engine.finish(texts)

        for ids, text in zip(TOGETHER, texts, strict=True):
            steps = text.steps
            alone = list(engine.stream(ids, document))
            assert [step.token_id for step in steps] == [s.token_id for s in alone]
            assert [step.text for step in steps] == [s.text for s in alone]
            assert steps[-1].finish_reason == alone[-1].finish_reason
            for one, other in zip(steps, alone, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


class CountingRuntime:
    """onnxruntime-genai, with the number of rows of every generator written down."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.rows: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def Generator(self, model: Any, params: Any) -> Any:  # noqa: N802 - theirs
        """A generator that counts the rows of its prompts."""
        generator = self._runtime.Generator(model, params)
        runtime = self

        class Counted:
            def __getattr__(self, name: str) -> Any:
                return getattr(generator, name)

            def append_tokens(self, tokens: Any) -> None:
                """Count a prompt; a step is one token of one row."""
                if np.ndim(tokens) > 1 and np.shape(tokens) != (1, 1):
                    runtime.rows.append(len(tokens))
                generator.append_tokens(tokens)

        return Counted()


def test_texts_that_join_later_are_as_if_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows at different positions, one being read in pieces while the other steps."""
    monkeypatch.setattr(onnxruntime_slots, "PIECE", 3)
    model = make_model(tmp_path / "model", "mistral", SMALL["mistral"])
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    engine = load_engine(out)
    documents: list[dict[str, Any]] = [
        {"max_new_tokens": 5 + n % 3, "temperature": 1.5, "seed": n, "stop": ["ab"]}
        if n % 2
        else {"max_new_tokens": 12 - n, "repetition_penalty": 1.4}
        for n in range(len(TOGETHER))
    ]
    alone = [
        list(engine.stream(ids, document))
        for ids, document in zip(TOGETHER, documents, strict=True)
    ]
    texts = [
        engine.begin(ids, document)
        for ids, document in zip(TOGETHER, documents, strict=True)
    ]
    for turns, text in enumerate(texts):
        engine.scheduler.add(text)
        for _ in range(turns % 4):
            engine.scheduler.turn()
    while engine.scheduler.num_running:
        engine.scheduler.turn()

    for text, steps in zip(texts, alone, strict=True):
        assert [s.token_id for s in text.steps] == [s.token_id for s in steps]
        assert [s.text for s in text.steps] == [s.text for s in steps]


def test_slots_are_stepped_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run of the graph for both slots, and prompts one after another."""
    model = make_model(tmp_path / "model", "llama", SMALL["llama"])
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    engine = load_engine(out)
    assert isinstance(engine.slots, GraphSlots)
    shapes: list[tuple[int, ...]] = []
    run = engine.slots._run

    def counted(first: int, ids: Any, mask: Any, places: Any) -> Any:
        shapes.append(ids.shape)
        return run(first, ids, mask, places)

    monkeypatch.setattr(engine.slots, "_run", counted)
    wanted = {"max_new_tokens": 4}
    texts = [engine.begin(ids, wanted) for ids in ([1, 2], [3, 4, 5])]
    engine.finish(texts)

    # The first text steps alone while the second one is read.
    assert shapes == [(1, 2), (1, 3), (1, 1), (2, 1), (2, 1), (1, 1)]


def test_other_prompts_are_computed_together(tmp_path: Path) -> None:
    """One pass for as many rows of one length as the request has."""
    model = make_model(tmp_path / "model", "lfm2", SMALL["lfm2"])
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    engine = load_engine(out)
    assert isinstance(engine.slots, GeneratorSlots)
    counted = CountingRuntime(engine.slots._genai)
    engine.slots._genai = counted
    engine.finish([engine.begin(ids, {"max_new_tokens": 3}) for ids in TOGETHER])

    # 13 twice, 3, 4 twice, 2. A prompt of one token looks like a step.
    assert sorted(counted.rows) == [1, 1, 2, 2]
