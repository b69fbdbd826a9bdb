"""
LLM Compressor, run on one model.

One fault of it is met here in the open: the AWQ modifier pins cached activations for
faster copies to an accelerator, also where there is none, and PyTorch refuses to pin
memory then (`Cannot access accelerator device when none is available`; seen in 0.14.0,
unchanged in 0.14.0.1; no setting turns it off). Pinning changes no value, so on a
machine without an accelerator it is left out.
"""

from __future__ import annotations

from typing import Any

from lmi_build.quantizers.external.driver import Request, device, drive, samples, say


def quantize(request: Request) -> None:
    """Apply the modifiers of `options` and save compressed."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = _stay_unpinned
    known = {
        "AWQModifier": AWQModifier,
        "GPTQModifier": GPTQModifier,
        "QuantizationModifier": QuantizationModifier,
        "SmoothQuantModifier": SmoothQuantModifier,
    }
    recipe = [known[name](**given) for name, given in request.options["modifiers"]]
    model = AutoModelForCausalLM.from_pretrained(
        request.model, dtype="auto", local_files_only=True
    )
    rows: Any = samples(request)
    data: dict[str, Any] = {}
    if request.windows:
        data = {"dataset": torch.utils.data.DataLoader(rows, batch_size=None)}
    say(f"llmcompressor on {device()}: {len(request.windows)} samples")
    oneshot(
        model=model,
        recipe=recipe,
        num_calibration_samples=max(1, len(request.windows)),
        shuffle_calibration_samples=False,
        **request.options["oneshot"],
        **data,
    )
    model.save_pretrained(request.out, save_compressed=True)


def _stay_unpinned(*_arguments: object, **_named: object) -> None:
    """Leave cached activations in ordinary memory."""


if __name__ == "__main__":
    drive(quantize)
