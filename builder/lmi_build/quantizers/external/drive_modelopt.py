"""NVIDIA Model Optimizer, run on one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.quantizers.external.driver import Request, device, drive, samples, say

if TYPE_CHECKING:
    from torch.nn import Module


def quantize(request: Request) -> None:
    """Measure activations on the windows, quantize with `options` and export."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    say(f"modelopt on {device()}: {len(request.windows)} samples")
    model = AutoModelForCausalLM.from_pretrained(
        request.model, dtype="auto", local_files_only=True
    ).to(device())

    def forward(model: Module) -> None:
        for sample in samples(request):
            model(**{name: tensor.to(device()) for name, tensor in sample.items()})

    with torch.inference_mode():
        model = mtq.quantize(model, getattr(mtq, request.options["config"]), forward)
    export_hf_checkpoint(model, export_dir=str(request.out))


if __name__ == "__main__":
    drive(quantize)
