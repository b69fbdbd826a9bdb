"""
Whether a checkpoint means the same to transformers as it does to us.

    python scripts/bench/formats.py --windows W.json [--gptqmodel PYTHON]
        [--compressed-tensors PYTHON] CHECKPOINT ...

Each `PYTHON` is the interpreter of an environment: `formats.requirements.txt` for
AutoGPTQ and AutoAWQ checkpoints, which transformers loads through gptqmodel, and one
with transformers and compressed-tensors (llm-compressor's will do) for the others.
`W.json` is made by `kl.py windows`. Each checkpoint is loaded there by
`AutoModelForCausalLM.from_pretrained`, in bfloat16 with what is picked for this
machine, and once so that every weight can be read in float32 (gptqmodel's plain
kernel, compressed-tensors in float32). Two things are compared:

- weights: the peer unpacks every layer in float32, and so does `kl.py`, by code of its
  own; equal means the same bits in every layer.
- logits: the peer computes in bfloat16, ours in float32. `own bf16` is the distance
  that bfloat16 alone makes: our unpacked weights, run by transformers in bfloat16.

Exits with 1 if a checkpoint does not load or a weight differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kl  # type: ignore[import-not-found, unused-ignore]

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

# Methods that transformers loads without gptqmodel.
PLAIN = ("compressed-tensors",)
# How each method is loaded: as transformers picks, and so that weights can be read.
BACKENDS = {
    "gptq": ("auto", "gptq_torch"),
    "awq": ("auto", "torch_awq"),
    "compressed-tensors": ("auto", "float32"),
}

# Runs in the peer's environment: needs nothing of ours.
CHILD = """
import hashlib, json, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

folder, windows, out, backend, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
config = json.load(open(folder + "/config.json"))["quantization_config"]
method = config["quant_method"]
more = {}
if method == "gptq":
    more["quantization_config"] = GPTQConfig(bits=config["bits"], backend=backend)
elif method == "awq":
    more["quantization_config"] = AwqConfig(bits=config["bits"], backend=backend)
dtypes = {"float32": torch.float32, "torch_awq": torch.float16}
dtype = dtypes.get(backend, torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=dtype, device_map="cpu", **more).eval()
mark = "weight_scale" if method == "compressed-tensors" else "qweight"
layers = {n: m for n, m in model.named_modules() if hasattr(m, mark)}
found = {"kernel": sorted({type(m).__name__ for m in layers.values()}), "weights": {}}
if method == "compressed-tensors":
    found["kernel"] = ["compressed-tensors"]

def weight_of(layer):
    if backend == "gptq_torch":
        kept, layer.scales = layer.scales, layer.scales.float()
        weight = layer.dequantize_weight().T
        layer.scales = kept
        return weight
    if backend == "torch_awq":
        from gptqmodel.nn_modules.qlinear import torch_awq
        return torch_awq.dequantize_gemm(
            qweight=layer.qweight, qzeros=layer.qzeros, scales=layer.scales.float(),
            bits=layer.bits, group_size=layer.group_size).T
    return layer.weight

with torch.inference_mode():
    if method == "compressed-tensors":
        # Weights are unpacked by the first call.
        model(torch.tensor([[0]]))
    if backend != "auto":
        for name, layer in layers.items():
            weight = weight_of(layer).float().contiguous() + 0.0
            found["weights"][name + ".weight"] = hashlib.sha256(
                weight.numpy().tobytes()).hexdigest()
    rows = [model(torch.tensor([ids])).logits[0].float().numpy()
            for ids in json.load(open(windows))]
np.save(out + ".npy", np.stack(rows))
json.dump(found, open(out + ".json", "w"))
"""


def load_by_peer(
    peer: Path, checkpoint: Path, windows: Path, *, backend: str, scratch: Path
) -> tuple[dict[str, Any], torch.Tensor]:
    """
    Load and run a checkpoint in the peer's environment.

    Returns:
        Its kernel and the digests of its weights, and its logits (N, T, V).

    Raises:
        SystemExit: It did not load; the end of what it said is shown.
    """
    import numpy as np
    import torch

    out = scratch / backend
    arguments = [checkpoint.resolve(), windows.resolve(), out, backend, 2]
    done = subprocess.run(
        [peer, "-c", CHILD, *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "HOME": str(scratch), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{checkpoint} did not load with {backend}:\n{done.stderr[-3000:]}")
    found = json.loads(out.with_suffix(".json").read_text())
    return found, torch.from_numpy(np.load(out.with_suffix(".npy")))


def drift(
    windows: kl.Windows, reference: torch.Tensor, other: torch.Tensor
) -> tuple[float, float, float]:
    """Largest difference of logits, mean KL per token, and top-1 agreement."""
    largest = float((reference - other).abs().max())
    rows = [
        kl.compare(ids, a, b)
        for ids, a, b in zip(windows, reference, other, strict=True)
    ]
    num_tokens = sum(map(len, windows))
    same = sum(row[1] for row in rows)
    return largest, sum(row[0] for row in rows) / len(rows), same / num_tokens


def own_logits(
    checkpoint: Path, windows: kl.Windows
) -> tuple[dict[str, str], torch.Tensor, torch.Tensor]:
    """Digests of our unpacked weights, and logits in float32 and in bfloat16."""
    import torch

    model = kl.load_checkpoint(checkpoint)
    digests = {
        name: hashlib.sha256(
            (weight.float().contiguous() + 0.0).numpy().tobytes()
        ).hexdigest()
        for name, weight in model.state_dict().items()
    }

    def run() -> torch.Tensor:
        with torch.inference_mode():
            rows = [model(torch.tensor([list(ids)])).logits[0] for ids in windows]
        return torch.stack(rows).float()

    exact = run()
    model.to(torch.bfloat16)
    return digests, exact, run()


def differing(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Names of layers whose unpacked weights are not the same bits."""
    return [name for name, digest in theirs.items() if ours.get(name) != digest]


def main() -> None:
    """Print a Markdown table; exit with 1 when a weight differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--gptqmodel", type=Path, help="its interpreter")
    parser.add_argument("--compressed-tensors", type=Path, help="its interpreter")
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(2)
    windows = json.loads(args.windows.read_text())
    failed = []
    print("| checkpoint | kernel | weights equal | max abs | of | KL | top-1 |")
    print("|---|---|---|---|---|---|---|")
    for checkpoint in args.checkpoints:
        config = json.loads((checkpoint / "config.json").read_text())
        method = config["quantization_config"]["quant_method"]
        peer = args.compressed_tensors if method in PLAIN else args.gptqmodel
        if peer is None:
            parser.error(f"{checkpoint} is `{method}`: its interpreter is not given")
        digests, exact, rounded = own_logits(checkpoint, windows)
        rows = [("own bf16", "-", rounded)]
        for backend in BACKENDS[method]:
            with tempfile.TemporaryDirectory() as folder:
                found, logits = load_by_peer(
                    peer,
                    checkpoint,
                    args.windows,
                    backend=backend,
                    scratch=Path(folder),
                )
            wrong = differing(found["weights"], digests)
            failed += [f"{checkpoint}: {name}" for name in wrong]
            num_layers = len(found["weights"])
            equal = f"{num_layers - len(wrong)}/{num_layers}" if num_layers else "-"
            rows.append((", ".join(found["kernel"]), equal, logits))
        for kernel, equal, logits in rows:
            largest, mean_kl, top1 = drift(windows, exact, logits)
            print(
                f"| {checkpoint.name} | {kernel} | {equal} | {largest:.3f}"
                f" | {float(exact.abs().max()):.1f} | {mean_kl:.5f} | {top1:.4f} |",
                flush=True,
            )
    if failed:
        sys.exit("weights differ: " + ", ".join(failed))


if __name__ == "__main__":
    main()
