"""Laws of reading and writing checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lmi_build.checkpoint.header import (
    MAX_HEADER_BYTES,
    TensorEntry,
    parse_header,
    read_header,
)
from lmi_build.checkpoint.ledger import (
    LedgerResult,
    LedgerRow,
    check_total,
    copied,
    made,
    read_ledger,
    smoothed,
    write_ledger,
)
from lmi_build.checkpoint.reader import CheckpointReader, byte_view
from lmi_build.checkpoint.writer import tensor_plan, write_checkpoint
from lmi_build.errors import SourceInvalid, StageFailed
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


def encode(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(
    begin: int, end: int, shape: list[int], dtype: str = "F32"
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = encode({"a": entry(0, 8, [2]), "b": entry(8, 12, [1])}, bytes(12))
BROKEN = {
    "empty": (b"", "checkpoint.truncated"),
    "prefix-cut": (GOOD[:5], "checkpoint.truncated"),
    "header-cut": (GOOD[:30], "checkpoint.truncated"),
    "data-cut": (GOOD[:-1], "checkpoint.truncated"),
    "appended": (GOOD + b"x", "checkpoint.overlap"),
    "absurd-length": (
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(100),
        "checkpoint.header-length",
    ),
    "no-header": (encode(b"", b""), "checkpoint.header-length"),
    "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF" + bytes(60), "checkpoint.header-length"),
    "not-json": (encode(b"{nope", b""), "checkpoint.header"),
    "not-utf8": (encode(b'{"\xff": 1}', b""), "checkpoint.header"),
    "deep": (encode(b"[" * 200_000, b""), "checkpoint.header"),
    "a-list": (encode([1], b""), "checkpoint.header"),
    "metadata": (encode({"__metadata__": {"a": 1}}, b""), "checkpoint.header"),
    "no-offsets": (encode({"a": {"dtype": "F32"}}, b""), "checkpoint.header"),
    "negative": (encode({"a": entry(-4, 0, [1])}, b""), "checkpoint.header"),
    "true-size": (encode({"a": entry(0, 4, [True])}, bytes(4)), "checkpoint.header"),
    "dtype": (encode({"a": entry(0, 4, [1], "F33")}, bytes(4)), "checkpoint.dtype"),
    "size": (encode({"a": entry(0, 8, [1])}, bytes(8)), "checkpoint.shape"),
    "overlap": (
        encode({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
        "checkpoint.overlap",
    ),
    "gap": (
        encode({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
        "checkpoint.overlap",
    ),
    "twice": (
        encode(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        "checkpoint.duplicate",
    ),
}


def test_a_good_header_is_read(tmp_path: Path) -> None:
    """Names, shapes and places are as written."""
    (tmp_path / "x").write_bytes(GOOD)

    header = read_header(tmp_path / "x")

    assert [e.name for e in header.tensors.values()] == ["a", "b"]
    assert header.tensors["b"].shape == (1,)
    assert header.tensors["b"].end == len(GOOD)


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Every way to break a file has its code, names the file and says what to do."""
    data, code = BROKEN[name]
    (tmp_path / "broken.safetensors").write_bytes(data)

    with pytest.raises(SourceInvalid) as caught:
        read_header(tmp_path / "broken.safetensors")

    assert caught.value.code == code
    assert "broken.safetensors" in caught.value.message
    assert caught.value.hints


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """No file, no traceback."""
    with pytest.raises(SourceInvalid) as caught:
        read_header(tmp_path / "none")

    assert caught.value.code == "checkpoint.unreadable"


def outcome(data: bytes) -> str:
    """What reading a whole file in memory ends in: its data bytes, or a code."""
    try:
        header = parse_header(data[8:-12], file_bytes=len(data), where="x")
    except SourceInvalid as error:
        return error.code
    return str(sum(entry.num_bytes for entry in header.tensors.values()))


@given(st.integers(8, len(GOOD) - 13), st.integers(0, 255))
def test_a_flipped_byte_is_read_or_refused(at: int, value: int) -> None:
    """A damaged header never ends in anything but a header or the user's error."""
    data = bytearray(GOOD)
    data[at] = value

    assert outcome(bytes(data)).startswith(("checkpoint.", "12"))


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(5, 3, generator=generator).bfloat16(),
        "a.qweight": torch.arange(6, dtype=torch.int32).view(2, 3),
        "a.scales": torch.randn(1, 3, generator=generator).half(),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
    }


def source_of(values: dict[str, Tensor]) -> Callable[[str], list[memoryview]]:
    return lambda name: [byte_view(values[name].contiguous())]


@pytest.mark.parametrize("max_shard_bytes", [10**9, 40])
def test_what_is_written_is_what_others_read(
    max_shard_bytes: int, tmp_path: Path
) -> None:
    """The safetensors library reads our files, one or many, and so do we."""
    values = tensors()
    plans = [tensor_plan(name, tensor) for name, tensor in values.items()]
    write_checkpoint(
        tmp_path, plans, source_of(values), max_shard_bytes=max_shard_bytes
    )
    theirs: dict[str, Tensor] = {}
    for path in tmp_path.glob("*.safetensors"):
        theirs |= load_file(path)

    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes < 100)
    with CheckpointReader(tmp_path) as reader:
        assert set(reader.tensors) == set(values) == set(theirs)
        for name, value in values.items():
            assert torch.equal(theirs[name], value)
            assert torch.equal(reader.read(name), value)
            assert b"".join(reader.stream(name)) == bytes(byte_view(value.contiguous()))


def test_order_of_tensors_changes_no_byte(tmp_path: Path) -> None:
    """The same tensors make the same file, however they are listed."""
    values = tensors()
    plans = [tensor_plan(name, tensor) for name, tensor in values.items()]
    for folder, listed in (("x", plans), ("y", plans[::-1])):
        (tmp_path / folder).mkdir()
        write_checkpoint(tmp_path / folder, listed, source_of(values))

    name = "model.safetensors"
    assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_too_few_bytes_leave_no_file(tmp_path: Path) -> None:
    """A file appears under its name only when every tensor is whole."""
    plan = tensor_plan("a", torch.zeros(4))

    with pytest.raises(ValueError, match="planned 16"):
        write_checkpoint(tmp_path, [plan], lambda _: [b"short"])

    assert not (tmp_path / "model.safetensors").exists()


def test_rows_are_read_alone(tmp_path: Path) -> None:
    """Some rows of a matrix equal those of the whole."""
    save_file({"e": torch.arange(12.0).view(4, 3)}, tmp_path / "model.safetensors")
    with CheckpointReader(tmp_path) as reader:
        rows = reader.read_rows("e", [2, 0, 2])

        assert rows.tolist() == [[6, 7, 8], [0, 1, 2], [6, 7, 8]]
        with pytest.raises(IndexError):
            reader.read_rows("e", [4])
        with pytest.raises(SourceInvalid) as caught:
            reader.read("f")
    assert caught.value.code == "checkpoint.missing-tensor"


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    """A sharded model has the same tensors as a single file."""
    one = make_tiny_model(tmp_path / "one")
    three = make_tiny_model(tmp_path / "three", num_shards=3)
    with CheckpointReader(one) as a, CheckpointReader(three) as b:
        assert list(a.tensors) == list(b.tensors)
        assert all(torch.equal(a.read(name), b.read(name)) for name in a.tensors)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "checkpoint.no-weights"),
        ("[]", "checkpoint.index"),
        ('{"weight_map": {}}', "checkpoint.index"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "checkpoint.index"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "checkpoint.index"),
    ],
)
def test_a_bad_index_is_refused(text: str | None, code: str, tmp_path: Path) -> None:
    """An index names files of its own folder that exist."""
    if text is not None:
        (tmp_path / "model.safetensors.index.json").write_text(text)

    with pytest.raises(SourceInvalid) as caught:
        CheckpointReader(tmp_path)

    assert caught.value.code == code


def at(name: str, shape: tuple[int, ...] = (2,), dtype: str = "float32") -> TensorEntry:
    return TensorEntry(name=name, dtype=dtype, shape=shape, begin=0, end=8)


SOURCE = {name: at(name) for name in ("x", "y")}
ROWS = (
    copied(SOURCE["x"]),
    LedgerRow(
        source="y",
        dtype="float32",
        shape=(2,),
        action="quantized",
        results=(
            LedgerResult(name="y.q", dtype="int32", shape=(1,)),
            LedgerResult(name="y.s", dtype="float16", shape=(1,)),
        ),
        error=0.01,
    ),
)
RESULT = {
    "x": at("x"),
    "y.q": at("y.q", (1,), "int32"),
    "y.s": at("y.s", (1,), "float16"),
}


def test_a_whole_ledger_balances(tmp_path: Path) -> None:
    """Every tensor accounted for passes, and survives its file."""
    check_total(ROWS, SOURCE, RESULT)
    write_ledger(tmp_path, ROWS)

    assert read_ledger(tmp_path) == ROWS


def test_smoothed_tensors_and_cache_scales_balance(tmp_path: Path) -> None:
    """A norm that absorbed a scale keeps its form; a cache scale has no source."""
    source = {name: at(name) for name in ("attn.q.weight", "norm")}
    rows = (
        made("attn.k_scale"),
        copied(source["attn.q.weight"]),
        smoothed(source["norm"]),
    )
    result = {**source, "attn.k_scale": at("attn.k_scale", (1,))}

    check_total(rows, source, result)
    write_ledger(tmp_path, rows)

    assert read_ledger(tmp_path) == rows


@pytest.mark.parametrize(
    ("rows", "source", "result", "fault"),
    [
        (ROWS[:1], SOURCE, RESULT, "`y` is lost"),
        ((*ROWS, ROWS[0]), SOURCE, RESULT, "`x` is used twice"),
        (ROWS, {"x": SOURCE["x"]}, RESULT, "`y` is unknown"),
        (ROWS, SOURCE, {k: RESULT[k] for k in ("x", "y.q")}, "`y.s` is missing"),
        (ROWS, SOURCE, {**RESULT, "z": at("z")}, "`z` is made of nothing"),
        (ROWS, SOURCE, {**RESULT, "x": at("x", (3,))}, "`x` is written with another"),
        (ROWS, {**SOURCE, "y": at("y", (9,))}, RESULT, "`y` is recorded with another"),
        (
            (ROWS[0], replace(ROWS[1], results=ROWS[0].results)),
            SOURCE,
            RESULT,
            "`x` is made twice",
        ),
        (
            (replace(ROWS[0], action="smoothed", dtype="int32"), ROWS[1]),
            SOURCE,
            RESULT,
            "`x` is recorded with another",
        ),
        (
            (replace(ROWS[0], action="smoothed", results=()), ROWS[1]),
            SOURCE,
            RESULT,
            "`x` is smoothed, yet its name, dtype or shape changed",
        ),
        (
            (replace(ROWS[0], action="lost"), ROWS[1]),
            SOURCE,
            RESULT,
            "`x` is recorded as `lost`",
        ),
        ((replace(ROWS[0], source=None), ROWS[1]), SOURCE, RESULT, "from nothing"),
        (
            (ROWS[0], replace(ROWS[1], results=())),
            SOURCE,
            RESULT,
            "`y` is quantized to nothing",
        ),
        ((*ROWS, made("a.k_scale")), SOURCE, RESULT, "the source does not have"),
        ((*ROWS, made("x.extra")), SOURCE, RESULT, "`x.extra` is made of nothing"),
        (
            (*ROWS, replace(made("x.k_scale"), source="x")),
            SOURCE,
            RESULT,
            "`x` is used twice",
        ),
    ],
)
def test_an_unbalanced_ledger_names_the_tensor(
    rows: tuple[LedgerRow, ...],
    source: dict[str, TensorEntry],
    result: dict[str, TensorEntry],
    fault: str,
) -> None:
    """Whatever is lost, doubled or made up is named."""
    with pytest.raises(StageFailed, match=fault) as caught:
        check_total(rows, source, result)

    assert caught.value.code == "checkpoint.ledger"
