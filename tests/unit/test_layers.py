"""The table of layers: totals are the ledger's, bytes are read back."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.checkpoint.layers import (
    Layers,
    layers_from_bytes,
    layers_of,
    layers_summary,
    layers_to_bytes,
)
from lmi_build.checkpoint.ledger import LedgerResult, LedgerRow
from lmi_build.values.model import DTYPE_BITS

PROJECTION = "model.layers.0.mlp.down_proj"


def _result(name: str, dtype: str, *shape: int) -> LedgerResult:
    return LedgerResult(name=name, dtype=dtype, shape=shape)


def _row(
    *results: LedgerResult, name: str = PROJECTION, error: float | None = 0.01
) -> LedgerRow:
    return LedgerRow(
        source=f"{name}.weight",
        dtype="bfloat16",
        shape=(256, 128),
        action="quantized",
        results=results,
        error=error,
    )


def _copy(name: str, *shape: int) -> LedgerRow:
    same = (_result(name, "bfloat16", *shape),)
    return LedgerRow(
        source=name, dtype="bfloat16", shape=shape, action="copied", results=same
    )


GPTQ4 = _row(
    _result("w.qweight", "int32", 16, 256),
    _result("w.qzeros", "int32", 2, 32),
    _result("w.scales", "float16", 2, 256),
    _result("w.g_idx", "int32", 128),
)


@pytest.mark.parametrize(
    ("row", "bits"),
    [
        (GPTQ4, 4),
        (_row(_result("w.qweight", "int32", 12, 256)), 3),
        (_row(_result("w.qweight", "int32", 128, 32)), 4),
        (_row(_result("w.weight_packed", "int32", 256, 16)), 4),
        (_row(_result("w.weight", "int8", 256, 128)), 8),
        (_row(_result("w.weight", "float8_e4m3fn", 256, 128)), 8),
    ],
)
def test_bits_are_read_off_the_codes(row: LedgerRow, bits: int) -> None:
    """Whatever the format packs, the codes' bytes say how many bits one has."""
    (layer,) = layers_of([row]).layers

    assert layer.bits == bits
    assert layer.name == PROJECTION


def test_classes_cover_every_byte() -> None:
    """Kinds are told apart and their bytes add up to the checkpoint's."""
    rows = [
        GPTQ4,
        _copy("model.embed_tokens.weight", 300, 128),
        _copy("lm_head.weight", 300, 128),
        _copy("model.norm.weight", 128),
        _copy("model.layers.0.mlp.gate.weight", 8, 128),
    ]
    layers = layers_of(rows)
    bits = sum(DTYPE_BITS[r.dtype] * prod(r.shape) for row in rows for r in row.results)

    assert {item.kind: item.num_tensors for item in layers.classes} == {
        "quantized linears": 1,
        "embeddings": 1,
        "head": 1,
        "norms and biases": 1,
        "other matrices": 1,
    }
    assert sum(item.num_bytes for item in layers.classes) == bits // 8
    assert layers.bits_per_weight == bits / sum(prod(row.shape) for row in rows)


@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.none() | st.floats(0, 1e6)),
        unique_by=lambda item: item[0],
    ),
    st.lists(st.text()),
)
def test_bytes_are_read_back(
    named: list[tuple[str, float | None]], findings: list[str]
) -> None:
    """Any names and errors come back; writing again gives the same bytes."""
    rows = [
        _row(_result("x", "int8", 256, 128), name=name, error=error)
        for name, error in named
    ]
    coverage = {
        "modules": {name: 7 for name, _ in named},
        "findings": [{"message": text} for text in findings],
    }
    layers = layers_of(rows, coverage=coverage)
    data = layers_to_bytes(layers)

    assert layers_from_bytes(data) == layers
    assert layers_to_bytes(layers_from_bytes(data)) == data


def test_worst_layers_and_their_share_stand_in_the_manifest() -> None:
    """The summary is short however many layers there are."""
    rows = [
        _row(_result(f"{n}", "int8", 256, 128), name=f"layer.{n:05}", error=n / 1000)
        for n in range(10_000)
    ]
    layers = layers_of(rows)
    summary = json.loads(json.dumps(layers_summary(layers)))

    assert [row["name"] for row in summary["worst"]][:2] == [
        "layer.09999",
        "layer.09998",
    ]
    assert summary["num_quantized"] == 10_000
    assert len(json.dumps(summary)) < 1500
    assert sum(layers.share(layer) for layer in layers.layers) == pytest.approx(1)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "lmi-build/layers/v9"},
        {"layers": [["x", [1], 4, 5, float("inf"), None]]},
        {"layers": [["x", [-1], 4, 5, 0.1, None]]},
        {"layers": [["x", [1], 4, 5]]},
        {"layers": 3},
        {"columns": ["evil"] * 6},
        {"classes": []},
    ],
)
def test_a_broken_table_is_refused(change: dict[str, object]) -> None:
    """Each is a `ValueError` that names the file."""
    document = json.loads(layers_to_bytes(layers_of([GPTQ4])))

    with pytest.raises(ValueError, match=r"layers\.json"):
        layers_from_bytes(json.dumps(document | change).encode())


def test_tokens_come_from_the_ledger_or_from_the_coverage() -> None:
    """A row that counts its tokens is believed first."""
    coverage = {"modules": {PROJECTION: 7}, "findings": []}
    counted = layers_of([replace(GPTQ4, tokens=9)], coverage=coverage)
    uncounted = layers_of([GPTQ4], coverage=coverage)

    assert [layer.tokens for layer in counted.layers] == [9]
    assert [layer.tokens for layer in uncounted.layers] == [7]


def test_nothing_quantized_has_no_errors() -> None:
    layers = Layers(layers=(), classes=())

    assert layers.worst(3) == ()
    assert layers.median_error is None
    assert layers.bits_per_weight == 0.0
