"""
The verify stage: tries the packed artifact in a fresh process.

Order: every hash before any of its code runs, then the engine as its own handler
loads it, then its tokenizer, its answers, its bounds, and its logits against the
float model. Gates are judged last, so that a missed one still shows every number.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

from lmi_build import __version__
from lmi_build.errors import VerifyFailed
from lmi_build.events import StageNote, StageProgress
from lmi_build.numerics.compare import Drift, DriftMeter
from lmi_build.package.engine import load_engine
from lmi_build.verify import checks
from lmi_build.verify.gates import judge, require_gates, summary
from lmi_build.verify.held_out import held_out_windows
from lmi_build.verify.integrity import refuse_if_damaged
from lmi_build.verify.reference import FloatReference

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.package.engine import Engine
    from lmi_build.spi import Job
    from lmi_build.values.manifest import Manifest

REPORT_NAME = "verify.json"
REPORT_SCHEMA = "lmi-build/verify/v1"
_VERSIONED = ("onnxruntime", "onnxruntime-genai", "torch", "transformers", "tokenizers")


def run(job: Job, emit: Emit) -> None:
    """
    Write `job.out/verify.json`.

    Raises:
        VerifyFailed: The artifact is not what its manifest says.
        GateFailed: `verify.gate-missed`; the message holds every number.
    """
    params = cast("dict[str, Any]", job.params)
    manifest = refuse_if_damaged(job.inputs["package"])
    for note in params["notes"]:
        _note(job, emit, "info", "verify.lowered", note)
    report: dict[str, JSONValue] = {
        "schema": REPORT_SCHEMA,
        "manifest": manifest.digest,
        "name": manifest.name,
        "num_files": len(manifest.files),
        "total_bytes": manifest.total_bytes,
        "versions": {"lmi-build": __version__, **_versions()},
        **_try_engine(job, emit, manifest),
    }
    drift = _measure(job, emit, manifest)
    rows = judge(drift, params["gates"])
    report["drift"] = {**asdict(drift), "perplexity_ratio": drift.perplexity_ratio}
    report["gates"] = [{**asdict(row), "met": row.met} for row in rows]
    _note(job, emit, "info", "verify.measured", summary(drift))
    require_gates(rows, drift)
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False)
    (job.out / REPORT_NAME).write_text(text + "\n", encoding="utf-8")


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


def _measure(job: Job, emit: Emit, manifest: Manifest) -> Drift:
    from tokenizers import Tokenizer

    params = cast("dict[str, Any]", job.params)
    root = job.inputs["package"]
    windows = held_out_windows(
        Tokenizer.from_file(str(root / "tokenizer.json")),
        num_samples=params["num_samples"],
        max_seq_len=params["max_seq_len"],
    )
    meter = DriftMeter()
    with FloatReference(
        job.inputs["model"],
        threads=int(cast("int", job.settings.get("threads", 0))),
        trust_remote_code=params["trust_remote_code"],
    ) as reference:
        engine = load_engine(root, manifest).engine
        for done, ids in enumerate(windows, start=1):
            try:
                _compare(meter, reference, engine, ids)
            except ValueError as error:
                raise VerifyFailed(
                    f"held-out window {done} of {len(windows)}: {error}",
                    code="verify.logits-broken",
                    hints=("build it again; if it stays, report it with the log",),
                ) from error
            emit(
                StageProgress(
                    stage=job.stage, done=done, total=len(windows), unit="windows"
                )
            )
    return meter.result()


def _compare(
    meter: DriftMeter, reference: FloatReference, engine: Engine, ids: list[int]
) -> None:
    """One window; its logits are gone when this returns, before the next are made."""
    # The engine first: it needs the more memory while it works.
    found = engine.logits(ids)
    meter.add(reference.logits(ids), found, ids)


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
