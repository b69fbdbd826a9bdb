"""Why a job ended as it did, from all that it left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build import errors
from lmi_build.jobs.service import COMPLETED, STOPPED

if TYPE_CHECKING:
    from lmi_build.errors import LmiBuildError
    from lmi_build.jobs.service import JobState
    from lmi_build.values.job import JobResult

# A job's own exit status to the error that has it here.
_BY_EXIT_CODE: dict[int, type[LmiBuildError]] = {
    cls.exit_code: cls
    for cls in (
        errors.StageFailed,
        errors.UsageInvalid,
        errors.ToolMissing,
        errors.DoesNotFit,
        errors.GateFailed,
        errors.RemoteFailed,
        errors.Interrupted,
    )
}
# Words of SageMaker's FailureReason to what to do about it.
_REASONS = (
    (
        "capacityerror",
        "AWS has no such instance free: submit again later, or use another instance",
    ),
    (
        "imagepull",
        "the role must be allowed to pull the image, and the image be in the region",
    ),
    (
        "no such image",
        "check `job.image`, and that the image is in the region",
    ),
    (
        "accessdenied",
        "the jobs' role lacks a right: `lmi-build job render RECIPE --policy`",
    ),
    (
        "no space left",
        "give its hosts more disk: `--set job.volume_size_gb=N`",
    ),
)
_AGAIN = "submit again: what was finished is kept, and half-done stages go on"


def failure_of(
    state: JobState,
    results: tuple[JobResult, ...],
    *,
    missing: int,
    last_lines: tuple[str, ...] = (),
) -> LmiBuildError | None:
    """
    Why a job failed; None where it did not.

    Args:
        state: An ended job.
        results: What its hosts left.
        missing: Stages of it that have no result in the store.
        last_lines: Of its output.
    """
    failed = [result for result in results if not result.ok]
    if state.status == COMPLETED and not missing:
        return None
    if failed:
        return _by_its_own_words(state, failed[0], last_lines)
    if state.status == COMPLETED:
        return errors.RemoteFailed(
            f"{state.name} completed, but {missing} of its stages have no result in"
            " the store",
            code="job.incomplete",
            hints=(f"look at its output: `lmi-build job logs {state.name}`", _AGAIN),
        )
    if state.status == STOPPED and not state.cause:
        return errors.RemoteFailed(
            f"{state.name} was stopped",
            code="job.was-stopped",
            hints=(_AGAIN,),
        )
    return _by_sagemaker(state, last_lines)


def _by_its_own_words(
    state: JobState, result: JobResult, last_lines: tuple[str, ...]
) -> LmiBuildError:
    kind = _BY_EXIT_CODE.get(result.exit_code, errors.StageFailed)
    return kind(
        _told(f"{state.name} ({result.host}): {result.message}", last_lines),
        code=result.code or "job.failed",
        hints=(*result.hints, _AGAIN),
    )


def _by_sagemaker(state: JobState, last_lines: tuple[str, ...]) -> LmiBuildError:
    cause = state.cause or "without a reason"
    found = f"{state.exit_message} {state.failure_reason}".lower().replace(" ", "")
    hints = [hint for word, hint in _REASONS if word.replace(" ", "") in found]
    return errors.RemoteFailed(
        _told(f"{state.name} {state.status.lower()}: {cause}", last_lines),
        code="job.failed",
        hints=(*hints, f"look at its output: `lmi-build job logs {state.name}`"),
    )


def _told(text: str, last_lines: tuple[str, ...]) -> str:
    if not last_lines:
        return text
    lines = "\n".join(f"  | {line}" for line in last_lines)
    return f"{text}\nits last lines:\n{lines}"
