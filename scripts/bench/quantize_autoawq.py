"""
AutoAWQ's side of `quantize.py`; runs in its environment only.

Its own defaults, clipping search included. It needs transformers before release 5, so
the model comes with its configuration in the older spelling.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.quantize_job import call, read_job

DISTRIBUTIONS = ("autoawq", "transformers", "torch")
NOTES = ("model's configuration in the spelling of transformers 4",)


def main() -> None:
    """Quantize as the job says."""
    job = read_job()
    options = job["options"]
    import torch
    from awq import (  # type: ignore[import-not-found, unused-ignore]
        AutoAWQForCausalLM,
    )

    torch.set_num_threads(job["threads"])
    windows = json.loads(Path(job["windows"]).read_text())
    model = AutoAWQForCausalLM.from_pretrained(
        job["model"], torch_dtype="auto", safetensors=True, device_map="cpu"
    )
    config = {
        "w_bit": options["bits"],
        "q_group_size": options["group_size"],
        "zero_point": not options["sym"],
        "version": "GEMM",
    }
    with call(job, distributions=DISTRIBUTIONS, notes=NOTES):
        model.quantize(
            quant_config=config,
            calib_data=windows,
            max_calib_samples=len(windows),
            max_calib_seq_len=len(windows[0]),
        )
        model.save_quantized(job["out"], safetensors=True)


if __name__ == "__main__":
    main()
