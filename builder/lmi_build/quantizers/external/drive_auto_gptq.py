"""AutoGPTQ, run on one model; written against 0.7.1, which wants a CUDA device."""

from __future__ import annotations

from lmi_build.quantizers.external.driver import Request, device, drive, samples, say


def quantize(request: Request) -> None:
    """Quantize with `options` and save."""
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    say(f"auto-gptq on {device()}: {len(request.windows)} samples")
    model = AutoGPTQForCausalLM.from_pretrained(
        str(request.model),
        BaseQuantizeConfig(**request.options["config"]),
        torch_dtype="auto",
        trust_remote_code=False,
    )
    model.quantize(samples(request), **request.options["quantize"])
    model.save_quantized(str(request.out), use_safetensors=True)


if __name__ == "__main__":
    drive(quantize)
