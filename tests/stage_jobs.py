"""The quantize stage run in this process, and what it made, as a model again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from bench.folder_facts import folder_facts
from bench.unpack import read_checkpoint
from lmi_build.checkpoint.ledger import read_ledger
from lmi_build.events import ignore
from lmi_build.quantizers import builtin_worker
from lmi_build.quantizers.builtin import PROVIDER
from lmi_build.spi import Job

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.events import Emit
    from lmi_build.values.recipe import QuantSpec


def quantize_job(root: Path, model: Path, spec: QuantSpec, **settings: Any) -> Job:
    """The stage's job, as the planner would lower it."""
    out = root / "out"
    out.mkdir(parents=True)
    return Job(
        stage="tiny/quantize",
        params=json.loads(json.dumps(PROVIDER.lower(spec, folder_facts(model)))),
        inputs={"model": model},
        out=out,
        state=root / "state",
        settings={"threads": 1, **settings},
    )


def quantize(
    root: Path, model: Path, spec: QuantSpec, *, emit: Emit = ignore, **settings: Any
) -> Path:
    """Run the stage; returns the checkpoint."""
    job = quantize_job(root, model, spec, **settings)
    builtin_worker.run(job, emit)
    return job.out


def unpacked(out: Path, model: Path, folder: Path) -> Path:
    """A quantized checkpoint as a float model that transformers loads."""
    config = json.loads((out / "config.json").read_text())
    checkpoint = read_checkpoint(out, config["quantization_config"])
    shapes = {row.source: row.shape for row in read_ledger(out)}
    transposed = "gpt2" in config["model_type"]
    tensors = {}
    for name, value in checkpoint.tensors.items():
        if name not in shapes:
            continue
        was_layer = name.removesuffix(".weight") in checkpoint.layers
        flipped = value.T if transposed and was_layer else value
        assert tuple(flipped.shape) == shapes[name], name
        tensors[name] = flipped.float().contiguous()
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
