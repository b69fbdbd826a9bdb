"""
The verify stage: tries the packed artifact in a fresh process.

Order: every hash before any of its code runs, then the engine as its own handler
loads it, then its tokenizer, its answers, its bounds, and its logits against the
float model. Gates are judged last, so that a missed one still shows every number.

Float model and engine are never in memory together: the float model's logits of all
windows go to a file first, and it is freed before the engine is loaded.
"""

from __future__ import annotations

import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lmi_build import __version__
from lmi_build.catalog.architectures import architectures
from lmi_build.checkpoint.formats.dequantized import (
    DequantizedReader,
    is_quantized,
    write_dequantized,
)
from lmi_build.checkpoint.layers import LAYERS_NAME, layers_from_bytes
from lmi_build.events import StageNote
from lmi_build.package.engine import load_engine
from lmi_build.store.files import write_atomic
from lmi_build.values.quant import QuantScheme
from lmi_build.verify import checks
from lmi_build.verify.advice import advice, quant_spec, worst_lines
from lmi_build.verify.drift import drift_document, measure_drift
from lmi_build.verify.gates import judge, require_gates, summary, weak_note
from lmi_build.verify.held_out import held_out_windows, num_held_out_windows
from lmi_build.verify.integrity import refuse_if_damaged
from lmi_build.verify.reference import FloatReference
from lmi_build.verify.streamed import can_stream, streamed_logits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    from tokenizers import Tokenizer

    from lmi_build.checkpoint.layers import Layers
    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.numerics.compare import Drift
    from lmi_build.spi import Job
    from lmi_build.values.manifest import Manifest
    from lmi_build.verify.gates import GateRow

REPORT_NAME = "verify.json"
REPORT_SCHEMA = "lmi-build/verify/v1"
_VERSIONED = ("onnxruntime", "onnxruntime-genai", "torch", "transformers", "tokenizers")


def run(job: Job, emit: Emit) -> None:
    """
    Write `job.out/verify.json`.

    Raises:
        VerifyFailed: The artifact is not what its manifest says.
        SourceInvalid: `calibration.tokenizer`: the tokenizer is another model's.
        GateFailed: `verify.gate-missed`; the message holds every number.
    """
    params = cast("dict[str, Any]", job.params)
    manifest = refuse_if_damaged(job.inputs["package"])
    for note in params["notes"]:
        _note(job, emit, "info", "verify.lowered", note)
    tokenizer = _tokenizer(job)
    windows = held_out_windows(
        tokenizer,
        num_samples=params["num_samples"],
        max_seq_len=params["max_seq_len"],
    )
    checks.check_windows(windows, job.inputs["model"])
    report: dict[str, JSONValue] = {
        "schema": REPORT_SCHEMA,
        "manifest": manifest.digest,
        "name": manifest.name,
        "num_files": len(manifest.files),
        "total_bytes": manifest.total_bytes,
        "versions": {"lmi-build": __version__, **_versions()},
        **_try_engine(job, emit, manifest),
    }
    drift = _measure(job, emit, manifest, windows)
    rows = judge(drift, params["gates"])
    report["drift"] = drift_document(drift)
    report["gates"] = [row.to_json() for row in rows]
    _note(job, emit, "info", "verify.measured", ", ".join(summary(drift)))
    _tell_weak(job, emit, rows, tokenizer)
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    # A missed gate leaves no result; its numbers stay here for the report page.
    write_atomic(job.state / REPORT_NAME, text.encode())
    refuse_missed(job.inputs["package"], manifest, rows, drift)
    (job.out / REPORT_NAME).write_text(text, encoding="utf-8")


def refuse_missed(
    root: Path, manifest: Manifest, rows: Sequence[GateRow], drift: Drift
) -> None:
    """
    Fail when a gate is missed, with the worst layers and what to try.

    Args:
        root: The artifact.
        manifest: Its manifest.
        rows: The gates, judged.
        drift: What was measured.

    Raises:
        GateFailed: `verify.gate-missed`.
    """
    layers = _layers(root)
    recipe = cast("dict[str, Any]", manifest.recipe["document"])
    require_gates(
        rows,
        drift,
        worst=worst_lines(layers),
        advice=advice(
            quant_spec(recipe.get("quantize", {})),
            QuantScheme(**cast("dict[str, Any]", manifest.scheme)),
            layers,
            drift,
            options=recipe.get("compile", {}).get("options", {}),
            transposed=_is_transposed(manifest),
        ),
    )


def _is_transposed(manifest: Manifest) -> bool:
    """Whether the model's weights lie with their inputs first."""
    known = architectures().get(str(manifest.model["architecture"]))
    return known is not None and known.transposed


def _tokenizer(job: Job) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(job.inputs["package"] / "tokenizer.json"))


def _tell_weak(
    job: Job, emit: Emit, rows: Iterable[GateRow], tokenizer: Tokenizer
) -> None:
    """Say which verdicts other text could turn."""
    weak = [row for row in rows if row.weak]
    if not weak:
        return
    params = cast("dict[str, Any]", job.params)
    most = num_held_out_windows(tokenizer, max_seq_len=params["max_seq_len"])
    for row in weak:
        text = weak_note(row, most=most)
        _note(job, emit, "warning", "verify.weak-evidence", text)


def _layers(root: Path) -> Layers | None:
    """The table of the artifact; None when nothing was quantized."""
    path = root / LAYERS_NAME
    return layers_from_bytes(path.read_bytes()) if path.is_file() else None


def _try_engine(job: Job, emit: Emit, manifest: Manifest) -> dict[str, JSONValue]:
    """
    Tokenizer, answers and bounds, before anything slow is done.

    The engine is let go again: it costs less to load it twice than to hold it while
    the float model is being loaded, which is the peak of this stage's memory.
    """
    params = cast("dict[str, Any]", job.params)
    root = job.inputs["package"]
    loaded = load_engine(root, manifest)
    for pin in loaded.drift:
        _note(job, emit, "warning", "verify.other-version", f"here runs {pin}")
    return {
        "tokenizer": checks.check_tokenizer(loaded, job.inputs["model"], root),
        "answers": checks.answer(
            loaded,
            params["prompts"],
            max_new_tokens=params["max_new_tokens"],
            chat=has_chat_template(root),
        ),
        "bounds": checks.check_bounds(loaded, manifest.bounds),
    }


def has_chat_template(root: Path) -> bool:
    """Whether the artifact brings a chat template, as a file or in its tokenizer."""
    if any((root / name).is_file() for name in ("chat_template.jinja",)):
        return True
    config = root / "tokenizer_config.json"
    return config.is_file() and bool(
        json.loads(config.read_bytes()).get("chat_template")
    )


def _measure(
    job: Job, emit: Emit, manifest: Manifest, windows: list[list[int]]
) -> Drift:
    root = job.inputs["package"]

    def candidate() -> Iterator[npt.NDArray[np.float32]]:
        engine = load_engine(root, manifest).engine
        return (engine.logits(ids) for ids in windows)

    reference = _float_logits(job, windows)
    return measure_drift(job, emit, windows, reference=reference, candidate=candidate)


def _float_logits(
    job: Job, windows: list[list[int]]
) -> Iterator[npt.NDArray[np.float32]]:
    """
    The float model's logits of each window, block by block where that is offered.

    Of a model that came quantized, the float model that its numbers mean.
    """
    model = job.inputs["model"]
    threads = int(cast("int", job.settings.get("threads", 0)))
    trust_remote_code = bool(job.params["trust_remote_code"])
    if is_quantized(model):
        yield from _dequantized_logits(job, model, windows, threads=threads)
        return
    if not trust_remote_code and can_stream(model):
        yield from streamed_logits(model, windows, threads=threads)
        return
    with FloatReference(
        model, threads=threads, trust_remote_code=trust_remote_code
    ) as reference:
        for ids in windows:
            yield reference.logits(ids)


def _dequantized_logits(
    job: Job, model: Path, windows: list[list[int]], *, threads: int
) -> Iterator[npt.NDArray[np.float32]]:
    with DequantizedReader(model) as reader:
        if can_stream(model, reader=reader):
            yield from streamed_logits(model, windows, threads=threads, reader=reader)
            return
    with tempfile.TemporaryDirectory(dir=job.out) as scratch:
        folder = Path(scratch)
        write_dequantized(model, folder)
        with FloatReference(
            folder, threads=threads, trust_remote_code=False
        ) as reference:
            for ids in windows:
                yield reference.logits(ids)


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _note(job: Job, emit: Emit, level: str, code: str, message: str) -> None:
    emit(StageNote(stage=job.stage, level=level, code=code, message=message))
