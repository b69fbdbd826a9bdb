"""Parts of tensors: read into memory of the caller, or mapped for the kernel."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lmi_build.backends.trtllm.checkpoint_files import RankFiles
from lmi_build.checkpoint.reader import CheckpointReader, byte_view
from lmi_build.checkpoint.writer import TensorPlan
from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from pathlib import Path

LENGTH = 50_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two tensors, longer than several pages."""
    root = tmp_path_factory.mktemp("parts")
    values = {
        "a": torch.arange(7, dtype=torch.uint8),
        "b": torch.arange(LENGTH, dtype=torch.int64).to(torch.uint8),
    }
    save_file(values, root / "model.safetensors")
    return root


@given(ends=st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)))
def test_parts_are_what_the_whole_has(folder: Path, ends: tuple[int, int]) -> None:
    """Read or mapped, any range gives the tensor's bytes."""
    first, last = sorted(ends)
    with CheckpointReader(folder) as reader:
        whole = bytes(byte_view(reader.read("b")))
        part = bytearray(last - first)
        reader.read_into("b", memoryview(part), first)
        with reader.mapped("b", first, last - first) as view:
            mapped = bytes(view)

    assert bytes(part) == mapped == whole[first:last]


def test_a_file_cut_under_a_mapping_is_found(folder: Path, tmp_path: Path) -> None:
    """The write fails; the process lives and says what happened."""
    path = tmp_path / "model.safetensors"
    path.write_bytes((folder / "model.safetensors").read_bytes())
    target = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    with CheckpointReader(tmp_path) as reader:
        reader.descriptor("b")

        def write(view: memoryview) -> None:
            os.truncate(path, 4096)
            os.pwritev(target, [view], 0)

        with (
            pytest.raises(SourceInvalid, match="became shorter"),
            reader.mapped("b", 8192, LENGTH - 8192) as view,
        ):
            write(view)
        with (
            pytest.raises(SourceInvalid, match="became shorter"),
            reader.mapped("b", 0, LENGTH),
        ):
            pass
    os.close(target)


def test_a_name_twice_is_a_fault_of_the_plan(tmp_path: Path) -> None:
    plan = TensorPlan(name="a", dtype="uint8", shape=(2,))

    with pytest.raises(ValueError, match="name twice"):
        RankFiles(tmp_path, [[plan, plan]])


def test_files_have_no_name_before_they_are_whole(tmp_path: Path) -> None:
    plan = TensorPlan(name="a", dtype="uint8", shape=(4,))
    with RankFiles(tmp_path, [[plan]]) as files:
        files.write_all(0, "a", 1, [memoryview(b"xy"), memoryview(b"z")])
        assert [path.name for path in tmp_path.iterdir()] == [
            "rank0.safetensors.partial"
        ]
        files.finish()

    assert (tmp_path / "rank0.safetensors").read_bytes().endswith(b"\0xyz")
    assert files.num_written_bytes == 3
