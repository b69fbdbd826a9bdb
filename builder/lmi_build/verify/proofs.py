"""What proofs on a machine without the artifact's device have in common."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from lmi_build import __version__
from lmi_build.checkpoint.formats.dequantized import DequantizedReader
from lmi_build.errors import Unsupported, VerifyFailed
from lmi_build.events import StageNote
from lmi_build.store.files import write_atomic
from lmi_build.verify.drift import drift_document, measure_drift
from lmi_build.verify.gates import judge, summary
from lmi_build.verify.held_out import held_out_windows
from lmi_build.verify.streamed import can_stream, streamed_logits
from lmi_build.verify.worker import REPORT_NAME, REPORT_SCHEMA, refuse_missed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from tokenizers import Tokenizer

    from lmi_build.backends.verdicts import Verdict
    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.events import Emit
    from lmi_build.numerics.compare import Drift
    from lmi_build.spi import Job
    from lmi_build.values.manifest import Manifest
    from lmi_build.verify.streamed import WeightReader


if TYPE_CHECKING:
    Report: TypeAlias = dict[str, JSONValue]
_LOADS = "loads"
# What a rehearsal of graphs is told.
REHEARSED = (
    "the graphs were rehearsed, not compiled: the call stands in rehearsal.json, and"
    " `publish` refuses this artifact"
)


def refuse(problems: Sequence[Problem]) -> None:
    """
    End with every problem at once, under the code of the first.

    Raises:
        VerifyFailed: There is one.
    """
    if not problems:
        return
    raise VerifyFailed(
        "\n  ".join(problem.message for problem in problems),
        code=problems[0].code,
        hints=tuple(dict.fromkeys(p.hint for p in problems if p.hint)),
    )


def report_head(manifest: Manifest, *, kind: str, rehearsal: bool) -> Report:
    """
    What every report of such a proof begins with.

    Args:
        manifest: The artifact's.
        kind: What it is, in its backend's words.
        rehearsal: Nothing was compiled.
    """
    return {
        "schema": REPORT_SCHEMA,
        "manifest": manifest.digest,
        "name": manifest.name,
        "num_files": len(manifest.files),
        "total_bytes": manifest.total_bytes,
        "versions": {"lmi-build": __version__},
        "kind": kind,
        "rehearsal": rehearsal,
    }


def finish(
    job: Job, emit: Emit, manifest: Manifest, report: Report, drift: Drift | None
) -> None:
    """
    Judge what was measured and write `job.out/verify.json`.

    The report is kept beside the job when a gate is missed.

    Args:
        job: Its parameters hold `gates`.
        emit: Told of what was measured.
        manifest: The artifact's.
        report: What is known so far.
        drift: How far the weights are from the float model's; None where nothing was
            measured.

    Raises:
        GateFailed: `verify.gate-missed`; the message holds every number.
    """
    gates = cast("dict[str, Any]", job.params["gates"]) if drift is not None else {}
    rows = judge(drift, gates) if drift is not None else ()
    if drift is not None:
        report["drift"] = drift_document(drift)
        report["gates"] = [row.to_json() for row in rows]
        note(job, emit, "info", "verify.measured", ", ".join(summary(drift)))
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomic(job.state / REPORT_NAME, text.encode())
    if drift is not None:
        refuse_missed(job.inputs["package"], manifest, rows, drift)
    (job.out / REPORT_NAME).write_text(text, encoding="utf-8")


def note(job: Job, emit: Emit, level: str, code: str, message: str) -> None:
    """Say something that ends nothing."""
    emit(StageNote(stage=job.stage, level=level, code=code, message=message))


def refuse_unless_loads(job: Job, emit: Emit, verdict: Verdict, server: str) -> None:
    """
    End where a release's container would not take the artifact as it is.

    Args:
        job: For notes.
        emit: Told of what can still go wrong.
        verdict: What the container does with the folder.
        server: What messages call it, such as `LMI 0.30.0`.

    Raises:
        VerifyFailed: `verify.compiles-at-start`.
    """
    if verdict.outcome != _LOADS:
        raise VerifyFailed(
            f"{server} would not load the artifact as it is"
            f" ({verdict.outcome}): {verdict.reason}",
            code="verify.compiles-at-start",
            hints=(verdict.fix,) if verdict.fix else (),
        )
    for text in verdict.notes:
        note(job, emit, "warning", "verify.startup", text)


def startup_rows(verdicts: Iterable[Verdict]) -> list[JSONValue]:
    """
    What every release of a container does with the folder, for the report.

    Args:
        verdicts: One for each release.
    """
    return [
        {"lmi": row.lmi, "outcome": row.outcome, "reason": row.reason}
        for row in verdicts
    ]


def measure_codes(
    job: Job, emit: Emit, manifest: Manifest, *, computed_by: str
) -> Drift | None:
    """
    How far a quantized checkpoint is from the float model it was made of.

    Args:
        job: As for `measure_weights`; an input `weights` where they were quantized.
        emit: Gets progress, and a note where activations are rounded as well.
        manifest: The artifact's.
        computed_by: What rounds the activations when it serves.

    Returns:
        None where nothing was quantized, or nothing could be measured.
    """
    weights = job.inputs.get("weights")
    if weights is None:
        return None
    drift = measure_weights(job, emit, manifest, lambda: DequantizedReader(weights))
    if drift is not None and manifest.scheme["activation_dtype"] != "none":
        message = (
            "measured with the activations in float: what rounding them to 8 bits"
            f" costs, {computed_by} alone can show"
        )
        note(job, emit, "info", "verify.float-activations", message)
    return drift


def measure_rounding(
    job: Job,
    emit: Emit,
    manifest: Manifest,
    open_reader: Callable[[], AbstractContextManager[WeightReader]],
) -> Drift | None:
    """
    How far a library's own rounding takes the weights from the float model's.

    Args:
        job: As for `measure_weights`.
        emit: Gets progress, and a warning where nothing was measured.
        manifest: The artifact's.
        open_reader: Gives the rounded weights under the model's names.

    Returns:
        None where they, or the float model, cannot be computed block by block.

    Raises:
        Unsupported: Any but `checkpoint.scheme`, which is a warning.
    """
    try:
        return measure_weights(job, emit, manifest, open_reader)
    except Unsupported as error:
        if error.code != "checkpoint.scheme":
            raise
        message = f"the quality of the weights was not measured: {error.message}"
        note(job, emit, "warning", "verify.not-measured", message)
        return None


def measure_weights(
    job: Job,
    emit: Emit,
    manifest: Manifest,
    open_reader: Callable[[], AbstractContextManager[WeightReader]],
) -> Drift | None:
    """
    How far other weights are from the float model's, computed block by block.

    Args:
        job: With an input `model`, and `num_samples`, `max_seq_len` and
            `trust_remote_code` among its parameters.
        emit: Gets progress, and a warning where nothing was measured.
        manifest: Names the folder of the artifact's tokenizer.
        open_reader: Gives the other weights under the model's names.

    Returns:
        None where the float model cannot be computed block by block.
    """
    model = job.inputs["model"]
    if job.params["trust_remote_code"] or not can_stream(model):
        message = (
            "the quality of the weights was not measured: the float model cannot be"
            " computed block by block"
        )
        note(job, emit, "warning", "verify.not-measured", message)
        return None
    windows = held_out_windows(
        _tokenizer(job, manifest),
        num_samples=int(cast("int", job.params["num_samples"])),
        max_seq_len=int(cast("int", job.params["max_seq_len"])),
    )
    threads = int(cast("int", job.settings.get("threads", 0)))
    reference = streamed_logits(model, windows, threads=threads)
    with open_reader() as reader:
        return measure_drift(
            job,
            emit,
            windows,
            reference=reference,
            candidate=lambda: streamed_logits(
                model, windows, threads=threads, reader=reader
            ),
        )


def _tokenizer(job: Job, manifest: Manifest) -> Tokenizer:
    from tokenizers import Tokenizer

    folder = job.inputs["package"] / str(manifest.serving["tokenizer_dir"])
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
