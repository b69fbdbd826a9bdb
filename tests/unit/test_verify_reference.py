"""Logits that wait on disk come back as they went."""

from __future__ import annotations

import json
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lmi_build.verify import streamed
from lmi_build.verify.reference import FloatReference, LogitsFile
from lmi_build.verify.streamed import can_stream, streamed_logits
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from pathlib import Path


def test_logits_come_back_exactly_in_any_order(tmp_path: Path) -> None:
    """Every bit, of windows of different lengths, contiguous or not."""
    random = np.random.default_rng(1)
    windows = [
        random.standard_normal((length, 31)).astype(np.float32) for length in (5, 1, 17)
    ]
    windows.append(windows[0][:, ::-1][:, :7])
    with tempfile.TemporaryFile(dir=tmp_path) as stream:
        kept = LogitsFile(stream)
        for logits_TV in windows:
            kept.append(logits_TV)
        for index in (2, 0, 3, 1, 0):
            back = kept.read(index)

            assert back.dtype == np.float32
            assert back.shape == windows[index].shape
            assert back.tobytes() == windows[index].tobytes()
    assert list(tmp_path.iterdir()) == []


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    """What is missing is not made up."""
    with tempfile.TemporaryFile(dir=tmp_path) as stream:
        kept = LogitsFile(stream)
        kept.append(np.ones((4, 8), np.float32))
        stream.truncate(4 * 8 * 4 - 1)

        with pytest.raises(OSError, match="window 0 end after 31 values"):
            kept.read(0)


@pytest.mark.parametrize("group_tokens", [8192, 100, 1])
def test_streamed_logits_are_the_whole_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_tokens: int
) -> None:
    """
    Block by block gives what the library gives, whether windows fit a group or not.

    Tolerance: the same float32 products, in batches of another shape.
    """
    monkeypatch.setattr(streamed, "GROUP_TOKENS", group_tokens)
    make_tiny_model(tmp_path)
    random = np.random.default_rng(2)
    vocab = json.loads((tmp_path / "config.json").read_bytes())["vocab_size"]
    windows = [[int(i) for i in random.integers(0, vocab, n)] for n in (48,) * 3]

    assert can_stream(tmp_path)
    with FloatReference(tmp_path, threads=1, trust_remote_code=False) as reference:
        for found, ids in zip(
            streamed_logits(tmp_path, windows, threads=1), windows, strict=True
        ):
            np.testing.assert_allclose(
                found, reference.logits(ids), rtol=1e-5, atol=2e-5
            )


def test_what_cannot_be_streamed_is_known(tmp_path: Path) -> None:
    """A weight that is not there by its name, quantized weights, foreign code."""
    make_tiny_model(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_bytes())
    for change in (
        {"num_hidden_layers": config["num_hidden_layers"] + 1},
        {"intermediate_size": 2 * config["intermediate_size"]},
        {"quantization_config": {"quant_method": "fp8"}},
        {"auto_map": {"AutoModelForCausalLM": "model.Evil"}},
        {"model_type": "no-such-type"},
    ):
        path.write_text(json.dumps(config | change))

        assert not can_stream(tmp_path), change
    path.write_text("{")
    assert not can_stream(tmp_path)
