"""Logits that wait on disk come back as they went."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lmi_build.verify.reference import LogitsFile

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
