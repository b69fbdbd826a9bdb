"""
The ledger boiled down to what people judge by: each layer's error, and where bits go.

The table lies in the artifact as `layers.json`, a file that the manifest hashes like
any other: ten thousand experts take a megabyte, and the manifest is read in every
`verify`, `inspect` and `fetch`. The manifest itself holds the totals and the worst few.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import astuple, dataclass, fields
from math import prod
from typing import TYPE_CHECKING, Any

from lmi_build.values.model import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lmi_build.checkpoint.ledger import LedgerResult, LedgerRow
    from lmi_build.digest import JSONValue

LAYERS_NAME = "layers.json"
LAYERS_SCHEMA = "lmi-build/layers/v1"
QUANTIZED = "quantized linears"
# How families of decoders name the two tables of a vocabulary; the rest goes by rank.
_CLASSES = (
    ("head", re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")),
    ("embeddings", re.compile(r"(^|\.)(embed\w*|\w*embed\w*|wte|wpe|shared)\.weight$")),
)
_NUM_WORST = 5
# Digits that mean something: the error is a mean over some ten thousand tokens.
_DIGITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """
    One quantized linear.

    Args:
        name: Module name, without `.weight`.
        shape: Of the source's weight.
        bits: Bits of one code.
        num_bytes: Of everything it became: codes, scales, zero points, indices.
        error: Relative squared error, of the output on calibration text where there
            was any, of the weights elsewhere; None where the quantizer says nothing.
        tokens: Calibration tokens that reached it; None where nobody counted.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    num_bytes: int
    error: float | None
    tokens: int | None = None

    @property
    def num_weights(self) -> int:
        """Product of the shape."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorClass:
    """
    What one kind of tensors takes.

    Args:
        kind: `quantized linears`, `embeddings`, `head`, `norms and biases`, `other
            matrices` or `cache scales`.
        num_tensors: Of the source.
        num_weights: Their elements.
        num_bytes: What they take in the checkpoint.
    """

    kind: str
    num_tensors: int
    num_weights: int
    num_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """With scales, zero points and indices."""
        return 8 * self.num_bytes / self.num_weights if self.num_weights else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """
    What became of a model's tensors.

    Args:
        layers: Every quantized linear, by name.
        classes: Totals by kind, largest first; they cover every tensor.
        findings: What calibration left to be desired, such as starved experts.
    """

    layers: tuple[Layer, ...]
    classes: tuple[TensorClass, ...]
    findings: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Of the whole checkpoint."""
        weights = sum(item.num_weights for item in self.classes)
        return 8 * sum(item.num_bytes for item in self.classes) / max(1, weights)

    def worst(self, count: int) -> tuple[Layer, ...]:
        """The layers of largest relative error, largest first."""
        measured = [layer for layer in self.layers if layer.error is not None]
        ranked = sorted(measured, key=lambda layer: (-(layer.error or 0.0), layer.name))
        return tuple(ranked[:count])

    @property
    def median_error(self) -> float | None:
        """Of all layers that have an error."""
        errors = [layer.error for layer in self.layers if layer.error is not None]
        return statistics.median(errors) if errors else None

    def share(self, layer: Layer) -> float:
        """A layer's part of the sum of all relative errors."""
        total = sum(item.error or 0.0 for item in self.layers)
        return (layer.error or 0.0) / total if total > 0 else 0.0


def layers_of(
    rows: Iterable[LedgerRow], *, coverage: Mapping[str, Any] | None = None
) -> Layers:
    """
    Boil a ledger down.

    Args:
        rows: The ledger.
        coverage: `coverage.json` of the checkpoint, where there is one.
    """
    tokens: Mapping[str, int] = coverage["modules"] if coverage else {}
    findings = coverage["findings"] if coverage else ()
    layers: list[Layer] = []
    sums: dict[str, list[int]] = {}
    for row in rows:
        # What was measured and not made of a tensor has no weights of its own.
        num_weights = prod(row.shape) if row.source else 0
        is_quantized = row.action == "quantized"
        if row.kept or not is_quantized:
            # The table that a quantized head shares is still there, too.
            kept = row.kept if is_quantized else row.results
            _count(sums, _kind(row), num_weights, sum(map(_num_bits, kept)))
        if is_quantized:
            sizes = [_num_bits(item) for item in row.made]
            num_bits = sum(sizes)
            _count(sums, QUANTIZED, num_weights, num_bits)
            error = None if row.error is None else float(f"{row.error:.{_DIGITS}g}")
            name = row.module
            layers.append(
                Layer(
                    name=name,
                    shape=row.shape,
                    bits=round(max(sizes) / max(1, num_weights)),
                    num_bytes=num_bits // 8,
                    error=error,
                    tokens=tokens.get(name) if row.tokens is None else row.tokens,
                )
            )
    classes = [
        TensorClass(kind=kind, num_tensors=n, num_weights=weights, num_bytes=size)
        for kind, (n, weights, size) in sums.items()
    ]
    return Layers(
        layers=tuple(sorted(layers, key=lambda layer: layer.name)),
        classes=tuple(sorted(classes, key=lambda item: (-item.num_bytes, item.kind))),
        findings=tuple(str(finding["message"]) for finding in findings),
    )


def _num_bits(item: LedgerResult) -> int:
    return prod(item.shape) * DTYPE_BITS[item.dtype]


def _count(
    sums: dict[str, list[int]], kind: str, num_weights: int, num_bits: int
) -> None:
    added = sums.setdefault(kind, [0, 0, 0])
    for at, value in enumerate((1, num_weights, num_bits // 8)):
        added[at] += value


def _kind(row: LedgerRow) -> str:
    source = row.source or ""
    if not source:
        return "cache scales"
    if len(row.shape) < 2:  # noqa: PLR2004 - vectors
        return "norms and biases"
    for kind, pattern in _CLASSES:
        if pattern.search(source):
            return kind
    return "other matrices"


def layers_summary(layers: Layers) -> dict[str, JSONValue]:
    """The few numbers that stand in the manifest."""
    return {
        "file": LAYERS_NAME,
        "num_quantized": len(layers.layers),
        "bits_per_weight": round(layers.bits_per_weight, 3),
        "classes": {
            item.kind: {
                "num_tensors": item.num_tensors,
                "num_weights": item.num_weights,
                "num_bytes": item.num_bytes,
            }
            for item in layers.classes
        },
        "median_error": layers.median_error,
        "worst": [
            {
                "name": layer.name,
                "bits": layer.bits,
                "error": layer.error,
                "share": round(layers.share(layer), _DIGITS),
            }
            for layer in layers.worst(_NUM_WORST)
        ],
    }


def layers_to_bytes(layers: Layers) -> bytes:
    """Write `layers.json`: columns once, then one row a line."""
    head = {
        "schema": LAYERS_SCHEMA,
        "classes": [
            [field.name for field in fields(TensorClass)],
            *map(astuple, layers.classes),
        ],
        "findings": layers.findings,
        "columns": [field.name for field in fields(Layer)],
    }
    lines = ",\n".join(json.dumps(astuple(layer)) for layer in layers.layers)
    return f'{json.dumps(head)[:-1]}, "layers": [\n{lines}\n]}}\n'.encode()


def layers_from_bytes(data: bytes) -> Layers:
    """
    Read what `layers_to_bytes` wrote, trusting nothing.

    Raises:
        ValueError: It is not a table of this schema.
    """
    document = json.loads(data)
    if not isinstance(document, dict) or document.get("schema") != LAYERS_SCHEMA:
        raise ValueError(f"{LAYERS_NAME} is not a {LAYERS_SCHEMA}")
    try:
        names, *classes = document["classes"]
        return Layers(
            layers=tuple(
                _layer(document["columns"], row) for row in document["layers"]
            ),
            classes=tuple(_tensor_class(names, row) for row in classes),
            findings=tuple(str(text) for text in document["findings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{LAYERS_NAME} has a broken row: {error}") from error


def _layer(columns: Sequence[str], row: Sequence[Any]) -> Layer:
    raw: dict[str, Any] = dict(zip(columns, row, strict=True))
    if not (
        isinstance(raw["name"], str)
        and isinstance(raw["shape"], list)
        and all(map(_is_count, [*raw["shape"], raw["bits"], raw["num_bytes"]]))
        and (raw["error"] is None or _is_error(raw["error"]))
        and (raw["tokens"] is None or _is_count(raw["tokens"]))
    ):
        raise TypeError(f"{row!r}")
    return Layer(**{**raw, "shape": tuple(raw["shape"])})


def _tensor_class(columns: Sequence[str], row: Sequence[Any]) -> TensorClass:
    raw: dict[str, Any] = dict(zip(columns, row, strict=True))
    counts = (raw["num_tensors"], raw["num_weights"], raw["num_bytes"])
    if not (isinstance(raw["kind"], str) and all(map(_is_count, counts))):
        raise TypeError(f"{row!r}")
    return TensorClass(**raw)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_error(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 <= value < float("inf")
    )
