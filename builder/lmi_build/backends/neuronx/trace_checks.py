"""Whether an encoder's folder is what was asked for, seen from its files."""

from __future__ import annotations

import json
import math
import zipfile
from typing import TYPE_CHECKING, Any, cast

from lmi_build.backends.neuronx.encoders import EMBEDDING
from lmi_build.backends.neuronx.sentence import POOLINGS, Sentence, read_sentence
from lmi_build.backends.neuronx.trace import RECORD, REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

REFERENCE_SCHEMA = "lmi-build/encoder-reference/v1"
# Cosine between a graph's vector and the float model's. Rounding every product to 8
# bits of mantissa leaves more than this in encoders of 24 layers; what is below is
# another model, another pooling or a broken graph.
MIN_COSINE = 0.98
# How far a normalised vector may be from length 1 in float32.
_UNIT = 1e-3


def read_record(engine: Path) -> dict[str, Any]:
    """
    What the driver says about the graphs.

    Args:
        engine: The folder that it filled.

    Raises:
        ValueError: It is no JSON object.
    """
    document = json.loads((engine / RECORD).read_bytes())
    if not isinstance(document, dict):
        raise ValueError(f"`{RECORD}` is not a JSON object")  # noqa: TRY004
    return document


def read_reference(engine: Path) -> list[dict[str, Any]]:
    """
    Texts, their tokens and what the float model answered when it was compiled.

    Args:
        engine: The folder that the driver filled.

    Raises:
        ValueError: The file is no such record.
    """
    document = json.loads((engine / REFERENCE).read_bytes())
    if not isinstance(document, dict) or document.get("schema") != REFERENCE_SCHEMA:
        raise ValueError(f"`{REFERENCE}` is not a record of answers")
    return cast("list[dict[str, Any]]", document["rows"])


def encoder_problems(
    engine: Path, model: Path, call: Mapping[str, Any]
) -> tuple[str, ...]:
    """
    Every difference between a folder and its plan, each as part of a sentence.

    Args:
        engine: The folder that the driver filled.
        model: The float model's folder.
        call: The `NeuronCall` as JSON.

    Raises:
        SourceInvalid: The model's own files are damaged.
        Unsupported: They ask for more than a graph has.
    """
    try:
        record, rows = read_record(engine), read_reference(engine)
    except (OSError, ValueError, KeyError) as error:
        return (f"its records cannot be read: {error}",)
    return (
        *_graph_problems(engine, record, call),
        *_argument_problems(record, call["arguments"]),
        *_meaning_problems(record, model, call["arguments"]),
        *_reference_problems(rows, record),
        *drift_problems(record),
    )


def _graph_problems(
    engine: Path, record: Mapping[str, Any], call: Mapping[str, Any]
) -> Iterator[str]:
    wanted = {
        str(step["length"]): str(step["file"]["path"]) for _, step in call["steps"]
    }
    if record.get("graphs") != wanted:
        yield f"it has the graphs {record.get('graphs')}, {wanted} were to be made"
        return
    for name in wanted.values():
        if fault := _archive_fault(engine / name):
            yield f"`{name}` {fault}"


def _archive_fault(path: Path) -> str:
    """Whether a file is no TorchScript; it is not executed to see that."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        return f"is no TorchScript file: {error}"
    parts = {name.partition("/")[2] for name in names}
    if "data.pkl" not in parts or not any(p.startswith("code/") for p in parts):
        return "is no TorchScript file: it has no code"
    return ""


def _argument_problems(
    record: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Iterator[str]:
    for name in ("task", "inputs", "batch_size", "padding_id"):
        if record.get(name) != arguments[name]:
            yield f"its {name} is {record.get(name)!r}, planned was {arguments[name]!r}"


def _meaning_problems(
    record: Mapping[str, Any], model: Path, arguments: Mapping[str, Any]
) -> Iterator[str]:
    if arguments["task"] == EMBEDDING:
        wanted = meaning(model, arguments)
        found = {
            "pooling": tuple(record.get("pooling") or ()),
            "normalize": record.get("normalize"),
            "strip": record.get("strip"),
            "lower": record.get("lower"),
        }
        for name, value in found.items():
            if value != getattr(wanted, name):
                yield (
                    f"its {name} is {value!r}, the model's files mean"
                    f" {getattr(wanted, name)!r}"
                )
        return
    count, names = num_labels(model), record.get("labels") or ()
    if count is not None and len(names) != count:
        yield f"it has {len(names)} labels, the model has {count}"


def meaning(model: Path, arguments: Mapping[str, Any]) -> Sentence:
    """
    How texts become vectors: the recipe's words over those of the model's files.

    Args:
        model: The float model's folder.
        arguments: Of the call.
    """
    own = read_sentence(model)
    pooling = arguments["pooling"] or (own.pooling if own else ())
    normalize = arguments["normalize"]
    if normalize is None:
        normalize = own.normalize if own else False
    return Sentence(
        pooling=tuple(name for name in POOLINGS if name in pooling),
        normalize=normalize,
        strip=own.strip if own else False,
        lower=own.lower if own else False,
    )


def num_labels(model: Path) -> int | None:
    """Labels that `config.json` names; None where it leaves the default."""
    config = json.loads((model / "config.json").read_bytes())
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) else None


def _reference_problems(
    rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]
) -> Iterator[str]:
    if not rows:
        yield f"`{REFERENCE}` holds no answers"
    for index, row in enumerate(rows):
        values = list(_flat(row["output"]))
        if not values or not all(math.isfinite(value) for value in values):
            yield f"answer {index} of the float model holds no finite numbers"
        elif record.get("normalize") and abs(math.hypot(*values) - 1) > _UNIT:
            yield f"answer {index} has length {math.hypot(*values):.6f}, not 1"


def _flat(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for inner in value:
            yield from _flat(inner)
    else:
        yield float(value)


def drift_problems(record: Mapping[str, Any]) -> Iterator[str]:
    """
    Why the graphs are not the float model, where a device answered.

    Args:
        record: What the driver says of them.
    """
    compared = record.get("compared")
    if compared and not float(compared["min_cosine"]) >= MIN_COSINE:
        yield (
            f"its graphs answer with cosine {compared['min_cosine']:.4f} to the float"
            f" model at worst, at least {MIN_COSINE} is asked for"
        )
