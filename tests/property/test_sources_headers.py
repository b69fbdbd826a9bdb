"""Laws of reading headers that somebody may have damaged."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_server import git_blob_id
from lmi_build.errors import LmiBuildError, SourceInvalid
from lmi_build.sources.copy_files import Hasher
from lmi_build.sources.gguf import GgufHeader, read_gguf_header
from lmi_build.sources.gguf_facts import summarise_gguf
from lmi_build.sources.safetensors_header import read_header_at
from lmi_build.sources.selection import check_name
from lmi_build.sources.shards import plan_shards, tensor_bytes
from lmi_build.values.model import TensorFact
from tiny_models import METADATA, SHAPES, gguf, safetensors

GGUF = gguf()
HEADER_BYTES = min(
    t.offset
    for t in read_gguf_header(
        lambda offset, count: GGUF[offset : offset + count], size=len(GGUF), name="m"
    ).tensors
)
SAFETENSORS = safetensors(SHAPES)


def read_gguf(data: bytes) -> GgufHeader:
    return read_gguf_header(
        lambda offset, count: data[offset : offset + count],
        size=len(data),
        name="m.gguf",
    )


@given(st.integers(0, len(GGUF) - 1))
def test_a_truncated_gguf_file_is_refused_at_every_length(length: int) -> None:
    if length >= len(GGUF.rstrip(b"\0")):
        return
    with pytest.raises(SourceInvalid, match="at byte") as caught:
        read_gguf(GGUF[:length])

    assert caught.value.code == "source.bad-gguf"


@given(
    st.lists(
        st.tuples(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255)),
        min_size=1,
        max_size=4,
    )
)
def test_flipped_header_bytes_never_give_anything_but_our_errors(
    flips: list[tuple[int, int]],
) -> None:
    data = bytearray(GGUF)
    for position, mask in flips:
        data[position] ^= mask
    with contextlib.suppress(LmiBuildError):
        summary = summarise_gguf(read_gguf(bytes(data)), file="m", size=len(data))

        assert {name: tuple(shape) for name, shape in summary["tensors"]} == SHAPES


@given(st.binary(max_size=200))
def test_noise_is_not_a_gguf_file(noise: bytes) -> None:
    for data in (noise, b"GGUF\3\0\0\0" + noise):
        with contextlib.suppress(SourceInvalid):
            assert read_gguf(data).tensors == ()


@given(st.integers(1, 64))
def test_how_a_file_is_cut_into_reads_does_not_change_its_header(step: int) -> None:
    header = read_gguf_header(
        lambda offset, count: GGUF[offset : offset + min(count, step)],
        size=len(GGUF),
        name="m",
    )

    assert header == read_gguf(GGUF)
    assert header.metadata["general.name"] == METADATA["general.name"]


@given(st.integers(0, len(SAFETENSORS) - 1))
def test_a_truncated_safetensors_file_is_refused_at_every_length(length: int) -> None:
    data = SAFETENSORS[:length]

    with pytest.raises(SourceInvalid, match=r"m\.safetensors"):
        read_header_at(
            lambda offset, count: data[offset : offset + count],
            size=length,
            file="m.safetensors",
        )


@given(st.text(max_size=40))
def test_an_accepted_name_stays_below_its_folder(name: str) -> None:
    try:
        check_name(name, source="test")
    except SourceInvalid:
        return
    folder = Path("/folder")

    assert (folder / name).resolve().is_relative_to(folder)
    assert (folder / name).resolve() != folder
    assert not PurePosixPath(name).is_absolute()
    assert name.isprintable()


@given(st.binary(max_size=500), st.integers(0, 500))
def test_a_digest_does_not_depend_on_how_bytes_arrive(data: bytes, cut: int) -> None:
    for digest in (
        f"sha256:{hashlib.sha256(data).hexdigest()}",
        f"git-sha1:{git_blob_id(data)}",
    ):
        hasher = Hasher(digest, len(data))
        hasher.update(data[:cut])
        hasher.update(data[cut:])

        assert hasher.matches
        hasher.update(b"x")
        assert not hasher.matches


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 200))
def test_shards_hold_every_tensor_once_and_are_no_larger_than_asked(
    sizes: list[int], limit: int
) -> None:
    facts = [
        TensorFact(name=str(i), dtype="int8", shape=(size,), file="")
        for i, size in enumerate(sizes)
    ]
    shards = list(plan_shards(facts, shard_bytes=limit))

    assert [fact for _, group in shards for fact in group] == facts
    assert all(
        sum(map(tensor_bytes, group)) <= limit or len(group) == 1 for _, group in shards
    )
    assert len({name for name, _ in shards}) == len(shards)
