"""
llm-compressor's side of `quantize.py`; runs in its environment only.

The model is loaded as its examples do (`dtype="auto"`), the calibration windows come
through its own door for data, and the checkpoint is saved compressed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.quantize_job import call, read_job

DISTRIBUTIONS = ("llmcompressor", "compressed-tensors", "transformers", "torch")
PIN_MEMORY = "AWQ's `cache.pin_memory` made to do nothing: it fails without a GPU"


def scheme(options: dict[str, Any]) -> dict[str, Any]:
    """One group of its configuration: what weights and activations become."""
    group: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": {
            "num_bits": options["bits"],
            "type": "int",
            "symmetric": options["sym"],
            "strategy": "group" if options["group_size"] > 0 else "channel",
            "group_size": options["group_size"] if options["group_size"] > 0 else None,
        },
    }
    if options["activations"] == "dynamic":
        group["input_activations"] = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    return {"group_0": group}


def modifiers(options: dict[str, Any]) -> list[Any]:
    """Its recipe for one of our methods."""
    from llmcompressor.modifiers.gptq import (  # type: ignore[import-not-found, unused-ignore]
        GPTQModifier,
    )
    from llmcompressor.modifiers.quantization import (  # type: ignore[import-not-found, unused-ignore]
        QuantizationModifier,
    )
    from llmcompressor.modifiers.transform.awq import (  # type: ignore[import-not-found, unused-ignore]
        AWQModifier,
    )
    from llmcompressor.modifiers.transform.smoothquant import (  # type: ignore[import-not-found, unused-ignore]
        SmoothQuantModifier,
    )

    common = {"config_groups": scheme(options), "ignore": ["lm_head"]}
    method = options["method"]
    if method == "gptq":
        return [GPTQModifier(actorder=options.get("actorder"), **common)]
    plain = QuantizationModifier(**common)
    if method == "awq":
        return [AWQModifier(), plain]
    if method == "smoothquant":
        return [SmoothQuantModifier(smoothing_strength=options["strength"]), plain]
    return [plain]


def main() -> None:
    """Quantize as the job says."""
    job = read_job()
    options = job["options"]
    import torch
    from datasets import (  # type: ignore[import-not-found, attr-defined, unused-ignore]
        Dataset,
    )
    from llmcompressor import (  # type: ignore[import-not-found, unused-ignore]
        oneshot,
    )
    from llmcompressor.pipelines.cache import (  # type: ignore[import-not-found, unused-ignore]
        IntermediatesCache,
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(job["threads"])
    notes = []
    if options["method"] == "awq":
        IntermediatesCache.pin_memory = lambda *_, **__: None
        notes.append(PIN_MEMORY)
    windows = json.loads(Path(job["windows"]).read_text())
    rows = {"input_ids": windows, "attention_mask": [[1] * len(x) for x in windows]}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    calibrated = options["method"] in {"gptq", "awq", "smoothquant"}
    data = {
        "dataset": Dataset.from_dict(rows),
        "num_calibration_samples": len(windows),
        "max_seq_length": len(windows[0]),
        "shuffle_calibration_samples": False,
    }
    with call(job, distributions=DISTRIBUTIONS, notes=notes):
        oneshot(
            model=model,
            tokenizer=tokenizer,
            recipe=modifiers(options),
            **(data if calibrated else {}),
        )
        model.save_pretrained(job["out"], save_compressed=True)


if __name__ == "__main__":
    main()
