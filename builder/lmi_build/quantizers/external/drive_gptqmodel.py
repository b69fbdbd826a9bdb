"""
GPT-QModel, run on one model.

Its thread pools want two workers for loading, whatever the machine has; with one core
importing it fails unless `GPTQMODEL_CPU_WORKERS` says otherwise, which is set here.
It compiles a packing kernel when it first packs; `TORCH_EXTENSIONS_DIR` keeps it.
"""

from __future__ import annotations

import os

from lmi_build.quantizers.external.driver import Request, device, drive, samples, say

# What the library's own pools need at the least.
_MIN_WORKERS = 2


def quantize(request: Request) -> None:
    """Quantize with `options` and save."""
    os.environ["GPTQMODEL_CPU_WORKERS"] = str(max(_MIN_WORKERS, request.threads))
    from gptqmodel import GPTQModel
    from gptqmodel.quantization import GPTQConfig

    config = GPTQConfig(
        **request.options["config"],
        offload_to_disk_path=str(request.out.with_name("offload")),
        device=device(),
    )
    say(f"gptqmodel on {device()}: {len(request.windows)} samples")
    model = GPTQModel.load(str(request.model), config, trust_remote_code=False)
    data = [
        {name: tensor[0].tolist() for name, tensor in sample.items()}
        for sample in samples(request)
    ]
    model.quantize(data, **request.options["quantize"])
    model.save(str(request.out))


if __name__ == "__main__":
    drive(quantize)
