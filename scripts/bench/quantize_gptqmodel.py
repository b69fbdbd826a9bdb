"""
GPTQModel's side of `quantize.py`; runs in its environment only.

Its own defaults, but for bits, group and symmetry: dampening 0.05, columns ordered
within groups (`act_group_aware`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.quantize_job import call, read_job

DISTRIBUTIONS = ("gptqmodel", "transformers", "torch")
# It sizes one pool by half of the cores and wants two workers in another: on a machine
# of two cores it ends with "requests 2 workers but parent 'cpu' only has 1".
WORKERS = {"GPTQMODEL_CPU_WORKERS": "2"}


def warm_up() -> None:
    """Compile its packing kernel, which it does on first use, outside the measure."""
    from gptqmodel.extension import (  # type: ignore[import-not-found, unused-ignore]
        load,
    )

    load("pack_block_cpu")


def main() -> None:
    """Quantize as the job says; `--warm-up` instead of a job only compiles."""
    os.environ |= WORKERS
    if sys.argv[1] == "--warm-up":
        warm_up()
        return
    job = read_job()
    options = job["options"]
    import torch
    from gptqmodel import (  # type: ignore[import-not-found, unused-ignore]
        GPTQModel,
        QuantizeConfig,
    )

    torch.set_num_threads(job["threads"])
    windows = json.loads(Path(job["windows"]).read_text())
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows]
    config = QuantizeConfig(
        bits=options["bits"],
        group_size=options["group_size"],
        sym=options["sym"],
        desc_act=options["desc_act"],
    )
    model = GPTQModel.load(job["model"], config, device="cpu")
    notes = [f"{name}={value}" for name, value in WORKERS.items()]
    with call(job, distributions=DISTRIBUTIONS, notes=notes):
        model.quantize(rows, batch_size=1)
        model.save(job["out"])


if __name__ == "__main__":
    main()
