"""Where a report page's numbers come from: manifest, layers, verification, store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.layers import LAYERS_NAME, layers_from_bytes
from lmi_build.digest import digest_bytes, short
from lmi_build.errors import VerifyFailed
from lmi_build.numerics.intervals import Interval
from lmi_build.report.data import Answer, Reading, ReportData, StageCost
from lmi_build.values.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lmi_build.values.result import StageResult

VERIFY_NAME = "verify.json"
_MEANINGS = {
    "mean_kl": (
        "Information about the next token that is lost, on average. 0.01 is hardly"
        " noticed, 0.1 changes many answers, 1 is another model."
    ),
    "top1_agreement": "How often both models think the same token the most likely one.",
    "max_abs_logit_error": (
        "An extreme over all tokens: more text can only raise it, so it has no"
        " interval."
    ),
}
# Measure, label, unit, value without loss, gate, whether it is a percentage.
_MEASURES = (
    ("mean_kl", "KL divergence", "nats per token", 0.0, "max_mean_kl", False),
    ("top1_agreement", "Top-1 agreement", "", 1.0, "min_top1_agreement", True),
    ("perplexity_ratio", "Perplexity ratio", "", 1.0, "max_perplexity_ratio", False),
    (
        "max_abs_logit_error",
        "Largest logit error",
        "",
        0.0,
        "max_abs_logit_error",
        False,
    ),
)


def report_data(
    manifest_bytes: bytes,
    *,
    layers: bytes | None,
    verification: bytes | None,
    stages: Iterable[StageCost] = (),
) -> ReportData:
    """
    Join what an artifact and its records say.

    Args:
        manifest_bytes: `manifest.json`.
        layers: `layers.json` of the artifact, where there is one.
        verification: `verify.json`; one of another manifest is left out.
        stages: What the stages cost, in order.

    Raises:
        VerifyFailed: The manifest is broken, or `layers.json` is not the one it names.
    """
    manifest = Manifest.from_bytes(manifest_bytes)
    identity = digest_bytes(manifest_bytes)
    checked = _verification(verification, identity)
    # What cannot run on the machine that verified it has no drift.
    measured = checked if checked and "drift" in checked else None
    costs = tuple(stages)
    return ReportData(
        name=manifest.name,
        identity=identity,
        summary=_summary(manifest),
        facts=_facts(manifest),
        readings=_readings(measured) if measured else (),
        evidence=_evidence(measured["drift"]) if measured else "",
        answers=tuple(
            Answer(prompt=str(row["prompt"]), text=str(row["text"]))
            for row in (checked or {}).get("answers", ())
        ),
        layers=_layers(manifest, layers),
        sizes=_sizes(manifest, costs),
        stages=costs,
        tools=_tools(manifest),
        digests=_digests(manifest, identity),
    )


def stage_costs(
    results: Mapping[str, StageResult], cached: Mapping[str, bool]
) -> tuple[StageCost, ...]:
    """
    What stages took, in the order of a build.

    Args:
        results: Stage kind to result.
        cached: Stage kind to whether this build found it; what is not named is not
            known.
    """
    order = ("fetch", "quantize", "checkpoint", "compile", "package", "verify")
    return tuple(
        StageCost(
            kind=kind,
            seconds=results[kind].measure.seconds,
            cpu_seconds=results[kind].measure.cpu_seconds,
            peak_rss_bytes=results[kind].measure.peak_rss_bytes,
            out_bytes=results[kind].out_bytes,
            cached=cached.get(kind),
        )
        for kind in order
        if kind in results
    )


def report_of_results(
    results: Mapping[str, StageResult],
    read: Callable[[str], bytes],
    *,
    cached: Mapping[str, bool],
    verification: bytes | None = None,
) -> ReportData:
    """
    The report of a build, from the store.

    Args:
        results: Stage kind to result; `package` must be there.
        read: Content by digest.
        cached: As `stage_costs` takes it.
        verification: `verify.json` of a verification that left no result.
    """
    files = {entry.path: entry.digest for entry in results["package"].entries}
    if "verify" in results:
        found = {entry.path: entry.digest for entry in results["verify"].entries}
        verification = read(found[VERIFY_NAME])
    return report_data(
        read(files[MANIFEST_NAME]),
        layers=read(files[LAYERS_NAME]) if LAYERS_NAME in files else None,
        verification=verification,
        stages=stage_costs(results, cached),
    )


def _verification(data: bytes | None, identity: str) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("manifest") != identity:
        return None
    return document


def _layers(manifest: Manifest, data: bytes | None) -> Any:
    if data is None:
        return None
    wanted = {entry.path: entry.digest for entry in manifest.files}.get(LAYERS_NAME)
    found = digest_bytes(data)
    if found != wanted:
        raise VerifyFailed(
            f"{LAYERS_NAME} is {found}, the manifest says {wanted}",
            code="verify.file-changed",
            hints=("fetch the artifact again, or build it again",),
        )
    return layers_from_bytes(data)


def _readings(checked: Mapping[str, Any]) -> tuple[Reading, ...]:
    drift = checked["drift"]
    gates = {row["gate"]: row for row in checked["gates"]}
    found = []
    for key, label, unit, perfect, gate, percent in _MEASURES:
        row = gates.get(gate)
        span = drift.get(f"{key}_interval")
        meaning = _MEANINGS.get(key) or (
            "The engine's perplexity over the float model's, here"
            f" {drift['engine_perplexity']:.3f} over"
            f" {drift['reference_perplexity']:.3f}."
        )
        found.append(
            Reading(
                label=label,
                unit=unit,
                value=float(drift[key]),
                perfect=perfect,
                interval=span and Interval(**span),
                allowed=row and float(row["allowed"]),
                met=row and bool(row["met"]),
                weak=bool(row and row.get("weak")),
                meaning=meaning,
                percent=percent,
            )
        )
    return tuple(found)


def _evidence(drift: Mapping[str, Any]) -> str:
    windows = drift["num_windows"]
    text = f"Measured on {drift['num_tokens']:,} held-out tokens in {windows} window"
    if windows == 1:
        return f"{text}, which is too few for an interval."
    return f"{text}s, with {drift.get('interval_level', 0.95):.0%} intervals."


def _summary(manifest: Manifest) -> str:
    model, scheme = manifest.model, manifest.scheme
    source = str(model["source"]).rpartition("/")[2]
    method = _quantize(manifest).get("method", "none")
    engine = _compile(manifest).get("backend", "its engine")
    where = f"compiled by {engine} for {manifest.compatibility['architecture']}"
    if scheme["packing"] == "none":
        return f"{source}, weights as they are ({model['dtype']}), {where}."
    return f"{source}, weights in {scheme['weight_bits']} bits by {method}, {where}."


def _quantize(manifest: Manifest) -> dict[str, Any]:
    document: Any = manifest.recipe["document"]
    return dict(document.get("quantize") or {})


def _compile(manifest: Manifest) -> dict[str, Any]:
    document: Any = manifest.recipe["document"]
    return dict(document.get("compile") or {})


def _facts(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    model, scheme = manifest.model, manifest.scheme
    quantize = _quantize(manifest)
    sizes = f"{model['num_layers']} layers, {model['hidden_size']} wide"
    pairs = [
        ("Model", f"{model['source']} {short(str(model['revision']))}".strip()),
        ("Architecture", f"{model['architecture']}, {sizes}"),
    ]
    if scheme["packing"] != "none":
        size = scheme["group_size"]
        groups = "one scale a row" if size == -1 else f"groups of {size}"
        sym = "symmetric" if scheme["sym"] else "with zero points"
        what = f"{scheme['weight_dtype']}{scheme['weight_bits']}, {groups}, {sym}"
        activations = f"activations {scheme['activation_bits']} bits"
        pairs.append(("Weights", f"{what} ({scheme['packing']}); {activations}"))
        options = ", ".join(
            f"{name} {value}"
            for name, value in quantize.items()
            if isinstance(value, (str, bool, int, float)) and name != "format"
        )
        pairs.append(("Method", options))
    calibration = quantize.get("calibration")
    if isinstance(calibration, dict) and scheme["packing"] != "none":
        told = ", ".join(f"{name} {value}" for name, value in calibration.items())
        pairs.append(("Calibration", told))
    bounds = ", ".join(f"{name} {n}" for name, n in manifest.bounds.items() if n)
    place = manifest.compatibility
    return (
        *pairs,
        ("Bounds", bounds),
        ("Runs on", f"{place['device']} {place['architecture']} {place['os']}"),
    )


def _sizes(
    manifest: Manifest, stages: tuple[StageCost, ...]
) -> tuple[tuple[str, int], ...]:
    """Bytes on the way; what no record tells is left out."""
    source: Any = manifest.model["files"]
    made = {stage.kind: stage.out_bytes for stage in stages}
    folder = manifest.serving["engine_dir"]
    engine = "" if folder == "." else f"{folder}/"
    rows = [
        ("Source model", sum(int(file["size"] or 0) for file in source)),
        ("Quantized checkpoint", made.get("quantize", 0)),
        ("Engine", sum(f.size for f in manifest.files if f.path.startswith(engine))),
        ("Artifact", manifest.total_bytes),
    ]
    return tuple((label, size) for label, size in rows if size)


def _tools(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for versions in manifest.tools.values():
        pairs: Any = versions
        found.update({str(name): str(version) for name, version in pairs.items()})
    return tuple(sorted(found.items()))


def _digests(manifest: Manifest, identity: str) -> tuple[tuple[str, str], ...]:
    rows = [("manifest", identity), ("recipe", str(manifest.recipe["digest"]))]
    rows += [(f"{kind} key", str(key)) for kind, key in manifest.plan.items()]
    if manifest.ledger is not None:
        rows.append(("ledger", str(manifest.ledger["digest"])))
    return tuple(rows)
