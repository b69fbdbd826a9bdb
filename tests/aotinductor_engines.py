"""Engines of tiny models compiled as the executor would, for tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.backends.aotinductor import worker
from lmi_build.package.handlers import aotinductor as handler
from lmi_build.package.handlers import generation
from lmi_build.spi import Job

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.events import Event

BOUNDS = {
    "max_input_len": 24,
    "max_output_len": 16,
    "max_seq_len": 40,
    "max_batch_size": 2,
}


def compile_engine(
    checkpoint: Path, place: Path, **params: Any
) -> tuple[Path, list[Event]]:
    """Run the worker as the executor would; returns the engine and its events."""
    out, state = place / "engine", place / "state"
    out.mkdir(parents=True)
    state.mkdir()
    events: list[Event] = []
    job = Job(
        stage="t/compile",
        params={
            "batch_sizes": [1, BOUNDS["max_batch_size"]],
            "compute_capability": "",
            "context_buckets": [BOUNDS["max_input_len"]],
            "device": "cpu",
            "dtype": "float32",
            "isa": "avx2",
            "lm_head_dtype": "checkpoint",
            "max_seq_len": BOUNDS["max_seq_len"],
            **params,
        },
        inputs={"checkpoint": checkpoint},
        out=out,
        state=state,
    )
    worker.run(job, events.append)
    return out, events


def load_engine(engine: Path) -> handler.Engine:
    """The engine as the artifact's handler loads it."""
    settings = {"engine_dir": engine.name, "bounds": BOUNDS}
    (engine.parent / generation.SETTINGS_NAME).write_text(json.dumps(settings))
    return handler.Engine(engine.parent)
