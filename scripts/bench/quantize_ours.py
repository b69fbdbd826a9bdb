"""
Our side of `quantize.py`: the stage's worker, in a process of its own.

Reading the model is inside the measured call; torch is loaded before it, as the
libraries' is.
"""

from __future__ import annotations

import sys
from pathlib import Path

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.folder_facts import folder_facts
from bench.quantize_job import call, read_job
from lmi_build.events import ignore
from lmi_build.quantizers import builtin_worker
from lmi_build.quantizers.builtin import PROVIDER
from lmi_build.spi import Job
from lmi_build.values.recipe import CalibrationSpec, QuantSpec

DISTRIBUTIONS = ("lmi-build", "torch")


def main() -> None:
    """Quantize as the job says."""
    job = read_job()
    model, out = Path(job["model"]), Path(job["out"])
    calibration = CalibrationSpec(
        num_samples=job["samples"], max_seq_len=job["length"], seed=job["seed"]
    )
    spec = QuantSpec(calibration=calibration, **job["options"])
    facts = folder_facts(model)
    estimate = PROVIDER.estimate(spec, facts)
    out.mkdir(parents=True)
    notes = [f"estimated peak {estimate.ram_bytes / 1e6:.0f} MB"]
    with call(job, distributions=DISTRIBUTIONS, notes=notes):
        builtin_worker.run(
            Job(
                stage="bench",
                params=PROVIDER.lower(spec, facts),
                inputs={"model": model},
                out=out,
                state=out.parent / "state",
                settings={"threads": job["threads"], **PROVIDER.job_settings(spec)},
            ),
            ignore,
        )


if __name__ == "__main__":
    main()
