"""
How far a candidate's logits are from a reference's, window by window.

The reference's logits of all windows go to a file first, and the candidate is made
after that: so the two are never in memory together.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING

from lmi_build.errors import VerifyFailed
from lmi_build.events import StageProgress
from lmi_build.numerics.compare import DriftMeter
from lmi_build.numerics.intervals import LEVEL
from lmi_build.verify.reference import LogitsFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    import numpy as np
    import numpy.typing as npt

    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.numerics.compare import Drift
    from lmi_build.spi import Job

    Logits: TypeAlias = npt.NDArray[np.float32]


def measure_drift(
    job: Job,
    emit: Emit,
    windows: Sequence[Sequence[int]],
    *,
    reference: Iterable[Logits],
    candidate: Callable[[], Iterable[Logits]],
) -> Drift:
    """
    Compare two sides on the same windows.

    Args:
        job: Its name for events; its `out` holds the file while this runs.
        emit: Gets progress in windows, both sides counted.
        windows: Token ids.
        reference: Float32 logits `[T, V]` of each window, in order.
        candidate: Makes the other side's, once the reference is done.

    Raises:
        VerifyFailed: `verify.logits-broken`: the candidate's cannot be compared.
    """

    def progress(done: int) -> None:
        total = 2 * len(windows)
        emit(StageProgress(stage=job.stage, done=done, total=total, unit="windows"))

    meter = DriftMeter()
    with tempfile.TemporaryFile(dir=job.out) as scratch:
        kept = LogitsFile(scratch)
        for done, logits_TV in enumerate(reference, start=1):
            kept.append(logits_TV)
            progress(done)
        found = iter(candidate())
        for done, ids in enumerate(windows, start=1):
            try:
                meter.add(kept.read(done - 1), next(found), ids)
            except ValueError as error:
                raise VerifyFailed(
                    f"held-out window {done} of {len(windows)}: {error}",
                    code="verify.logits-broken",
                    hints=("build it again; if it stays, report it with the log",),
                ) from error
            progress(len(windows) + done)
    return meter.result()


def drift_document(drift: Drift) -> dict[str, JSONValue]:
    """The drift as it stands in `verify.json`."""
    return {
        **asdict(drift),
        "perplexity_ratio": drift.perplexity_ratio,
        "interval_level": LEVEL,
    }
