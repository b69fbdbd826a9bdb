"""
Our side of `quantize.py`: the stage's worker, in a process of its own.

torch is loaded inside the measured call, because the worker sets up its process first;
reading the model is inside it as well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.quantize_job import call, read_job
from lmi_build.checkpoint.header import read_header
from lmi_build.events import ignore
from lmi_build.quantizers import builtin_worker
from lmi_build.quantizers.builtin import PROVIDER
from lmi_build.spi import Job
from lmi_build.values.model import ModelFacts, TensorFact, geometry_from_config
from lmi_build.values.recipe import CalibrationSpec, QuantSpec

DISTRIBUTIONS = ("lmi-build", "torch")


def read_facts(folder: Path) -> ModelFacts:
    """Facts of a local folder, from its headers."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tensors = [
        TensorFact(name=e.name, dtype=e.dtype, shape=e.shape, file=path.name)
        for path in sorted(folder.glob("*.safetensors"))
        for e in read_header(path).tensors.values()
    ]
    return ModelFacts(
        kind="folder",
        source=str(folder),
        location=str(folder),
        revision="",
        geometry=geometry_from_config(config),
        config=config,
        files=(),
        tensors=tuple(tensors),
        dtype=config.get("dtype") or config.get("torch_dtype") or "bfloat16",
    )


def main() -> None:
    """Quantize as the job says."""
    job = read_job()
    model, out = Path(job["model"]), Path(job["out"])
    calibration = CalibrationSpec(
        num_samples=job["samples"], max_seq_len=job["length"], seed=job["seed"]
    )
    spec = QuantSpec(calibration=calibration, **job["options"])
    facts = read_facts(model)
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
