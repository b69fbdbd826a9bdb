"""AutoAWQ, run on one model."""

from __future__ import annotations

from lmi_build.quantizers.external.driver import Request, device, drive, say


def quantize(request: Request) -> None:
    """Search scales on the windows, quantize with `options` and save."""
    from awq import AutoAWQForCausalLM

    say(f"autoawq on {device()}: {len(request.windows)} samples")
    model = AutoAWQForCausalLM.from_pretrained(
        str(request.model),
        torch_dtype="auto",
        trust_remote_code=False,
        safetensors=True,
        device_map="cpu",
        local_files_only=True,
    )
    # The library drops samples longer than its limit and cuts the rest into pieces of
    # that length; windows all have it, so that each stays as it is.
    model.quantize(
        quant_config=dict(request.options["config"]),
        calib_data=[list(window) for window in request.windows],
        max_calib_samples=len(request.windows),
        max_calib_seq_len=max(map(len, request.windows)),
        **request.options["quantize"],
    )
    model.save_quantized(str(request.out), safetensors=True)


if __name__ == "__main__":
    drive(quantize)
