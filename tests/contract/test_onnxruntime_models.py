"""Every architecture of the table gives the logits of transformers, or is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

from autogptq import quantize_folder
from lmi_build.catalog.onnxruntime_models import onnxruntime_models
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
