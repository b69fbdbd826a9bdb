"""A conversion that cannot finish leaves no file that looks whole."""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from lmi_build.backends.trtllm.checkpoint_files import RankFiles
from lmi_build.checkpoint.writer import TensorPlan
from lmi_build.errors import is_disk_full
from trtllm_models import convert, make

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_as_such(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = make("llama", tmp_path / "source")
    request.getfixturevalue("small_files")

    with pytest.raises(OSError, match=r"\[Errno") as caught:
        convert(source, tmp_path / "out")

    assert is_disk_full(caught.value)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_disk_that_fills_up_half_way_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a thread reaches the stage, and nothing gets its name."""
    source = make("llama", tmp_path / "source")
    monkeypatch.delattr(os, "copy_file_range")
    write = os.pwrite
    calls: list[int] = []

    def limited(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", limited)

    with pytest.raises(OSError, match="No space left") as caught:
        convert(source, tmp_path / "out", tp=2)

    assert is_disk_full(caught.value)
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert not (tmp_path / "out/config.json").exists()


def test_what_a_killed_attempt_left_does_not_matter(tmp_path: Path) -> None:
    """A partial file of the same name is begun anew, however long it was."""
    partial = tmp_path / "rank0.safetensors.partial"
    partial.write_bytes(b"x" * 100_000)
    plan = TensorPlan(name="a", dtype="uint8", shape=(3,))

    with RankFiles(tmp_path, [[plan]]) as files:
        files.write(0, "a", 0, memoryview(b"abc"))
        files.finish()

    data = (tmp_path / "rank0.safetensors").read_bytes()
    assert data.endswith(b"abc")
    assert len(data) < 200
    assert not partial.exists()
