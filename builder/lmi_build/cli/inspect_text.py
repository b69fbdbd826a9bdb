"""An artifact's manifest as people read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.cli.render import table
from lmi_build.digest import short
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

# The largest files tell where the bytes are; the rest is in `--output json`.
_NUM_FILES_SHOWN = 8
_REHEARSED = "a rehearsal: nothing was compiled, and `publish` refuses it"


def manifest_text(
    document: Mapping[str, Any], uri: str, requests: Mapping[str, Any]
) -> str:
    """What it is, what it promises, what made it, and how to deploy it."""
    model, scheme = document["model"], document["scheme"]
    bounds = {name: value for name, value in document["bounds"].items() if value}
    tools = {
        name: version
        for versions in document["tools"].values()
        for name, version in versions.items()
    }
    pairs = [
        ("artifact", document["name"]),
        ("at", uri),
        ("model", f"{model['source']} {short(model['revision'])}".strip()),
        ("architecture", f"{model['architecture']}, {model['num_layers']} layers"),
        ("weights", _scheme_text(scheme, model["dtype"])),
        ("bounds", ", ".join(f"{name} {value}" for name, value in bounds.items())),
        ("runs on", _compatibility_text(document["compatibility"])),
        ("made with", ", ".join(f"{n} {v}" for n, v in sorted(tools.items()))),
        ("recipe", short(document["recipe"]["digest"])),
        *((f"{kind} key", short(key)) for kind, key in document["plan"].items()),
    ]
    pairs += _quantized_pairs(document["ledger"])
    width = max(len(name) for name, _ in pairs)
    lines = [f"{name.ljust(width)}  {value}" for name, value in pairs]
    parts = [_layers_text(document["ledger"]), _files_text(document["files"])]
    rehearsed = document["serving"].get("rehearsal")
    parts.append(_REHEARSED if rehearsed else _deploy(uri, requests))
    parts = [part for part in parts if part]
    return "\n\n".join(["\n".join(lines), *parts])


def _quantized_pairs(ledger: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """How many bits a weight takes, by kind of tensor; nothing without a ledger."""
    layers = (ledger or {}).get("layers")
    if not layers:
        return []
    kinds = ", ".join(
        f"{kind} {8 * item['num_bytes'] / item['num_weights']:.2f}"
        for kind, item in sorted(layers["classes"].items())
        if item["num_weights"]
    )
    return [("bits a weight", f"{layers['bits_per_weight']:.2f} ({kinds})")]


def _layers_text(ledger: Mapping[str, Any] | None) -> str:
    """The layers that lose most; the whole table is `layers.json` and the report."""
    layers = (ledger or {}).get("layers")
    if not layers or not layers["worst"]:
        return ""
    rows = [
        [row["name"], str(row["bits"]), f"{row['error']:.3g}", f"{row['share']:.1%}"]
        for row in layers["worst"]
    ]
    head = (
        f"{layers['num_quantized']} layers quantized, median relative error"
        f" {layers['median_error']:.3g}; the largest:"
    )
    return f"{head}\n{table(['layer', 'bits', 'error', 'of all'], rows)}"


def _scheme_text(scheme: Mapping[str, Any], dtype: str) -> str:
    if scheme["packing"] == "none":
        if scheme["weight_dtype"] == "int":
            bits = scheme["weight_bits"]
            return f"{dtype}, rounded to int{bits} per row by the library that loads it"
        return dtype
    group = scheme["group_size"]
    shared = "per row" if group == -1 else f"groups of {group}"
    sym = "symmetric" if scheme["sym"] else "with zero points"
    return f"int{scheme['weight_bits']} {shared}, {sym} ({scheme['packing']})"


def _compatibility_text(block: Mapping[str, Any]) -> str:
    needs = ", ".join(block["requirements"])
    place = f"{block['device']} {block['architecture']} {block['os']}"
    if "num_cores" in block:
        cores = f"{block['num_cores']} cores of {block['instance_type']}"
        return f"{cores} ({place}), with {block['release']} by {block['loader']}"
    if "release" in block:
        machine = f"{block['num_ranks']} x {place}, such as {block['instance_type']}"
        engines = (("trtllm", "TensorRT-LLM"), ("vllm", "vLLM"))
        named = [f" ({title} {block[key]})" for key, title in engines if key in block]
        return f"{machine}, with {block['release']}{''.join(named)}"
    return f"{place}, needs {needs}" if needs else place


def _files_text(files: list[Mapping[str, Any]]) -> str:
    largest = sorted(files, key=lambda file: -file["size"])[:_NUM_FILES_SHOWN]
    rows = [
        [file["path"], format_bytes(file["size"]), file["sha256"][:12]]
        for file in largest
    ]
    total = format_bytes(sum(file["size"] for file in files))
    head = f"{len(files)} files, {total}; the largest:"
    return f"{head}\n{table(['file', 'size', 'sha256'], rows)}"


def _deploy(uri: str, requests: Mapping[str, Any]) -> str:
    """How SageMaker takes it; only a bucket can be named in a model."""
    if requests:
        bodies = "\n".join(
            f"{name}\n{json.dumps(body, indent=2)}" for name, body in requests.items()
        )
        return f"deploy with these requests (`--region`, `--role`):\n{bodies}"
    if not uri.startswith("s3://"):
        return "publish it to S3 to deploy it: `lmi-build publish FOLDER s3://...`"
    return (
        "deploy with ModelDataSource:\n"
        '{"S3DataSource": {"S3Uri": "'
        f'{uri}", "S3DataType": "S3Prefix", "CompressionType": "None"}}}}'
    )
