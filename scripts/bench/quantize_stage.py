"""
What one run of the built-in quantizer costs, and how far its result drifts.

The stage runs in a fresh process, as a build would run it; its CPU seconds, wall time
and peak resident memory are those of that process. The result is then unpacked into
transformers in float32 and compared with the float model on held-out text.

    python scripts/bench/quantize_stage.py MODEL [--bits 4] [--group-size 64] [--asym]

`--method rtn` rounds to nearest instead, without a stage: the yardstick for the others.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.header import read_header
from lmi_build.quantizers.builtin import PROVIDER
from lmi_build.values.model import ModelFacts, TensorFact, geometry_from_config
from lmi_build.values.recipe import CalibrationSpec, QuantSpec

if TYPE_CHECKING:
    from torch import Tensor

    from lmi_build.numerics.compare import Drift

WINDOW_TOKENS = 1024
WORKER = """
import json, sys
from pathlib import Path
from lmi_build.events import ignore
from lmi_build.quantizers import builtin_worker
from lmi_build.spi import Job

job = json.loads(sys.argv[1])
builtin_worker.run(
    Job(
        stage="bench",
        params=job["params"],
        inputs={"model": Path(job["model"])},
        out=Path(job["out"]),
        state=Path(job["state"]),
        settings=job["settings"],
    ),
    ignore,
)
"""


def main() -> None:
    """Run the stage once and print one line of JSON."""
    arguments = parse_arguments()
    if arguments.method == "rtn":
        print(json.dumps(score_rounding(arguments)))
        return
    spec = QuantSpec(
        method=arguments.method,
        bits=arguments.bits,
        group_size=arguments.group_size,
        sym=not arguments.asym,
        desc_act=not arguments.in_order,
        damp_percent=arguments.damp_percent,
        calibration=CalibrationSpec(
            num_samples=arguments.num_samples, max_seq_len=arguments.max_seq_len
        ),
    )
    model = arguments.model.absolute()
    facts = read_facts(model)
    estimate = PROVIDER.estimate(spec, facts)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        row = run_stage(root, model, spec, facts, threads=arguments.threads)
        row["estimated_ram_mb"] = round(estimate.ram_bytes / 1e6)
        if arguments.windows:
            weights = unpack(root / "out")
            row |= drift_row(score(model, weights, num_windows=arguments.windows))
    print(json.dumps(row))


def drift_row(drift: Drift) -> dict[str, float]:
    """What is printed of a comparison."""
    return {
        "kl": round(drift.mean_kl, 4),
        "kl_standard_error": round(drift.mean_kl_standard_error, 4),
        "top1": round(drift.top1_agreement, 4),
        "perplexity": round(drift.engine_perplexity, 3),
        "reference_perplexity": round(drift.reference_perplexity, 3),
    }


def score_rounding(arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of plain rounding of the same layers, without calibration."""
    import torch

    torch.set_num_threads(arguments.threads)
    weights = round_weights(
        arguments.model.absolute(),
        bits=arguments.bits,
        group_size=arguments.group_size,
        sym=not arguments.asym,
    )
    row = {
        "method": "rtn",
        "bits": arguments.bits,
        "group_size": arguments.group_size,
        "sym": not arguments.asym,
    }
    drift = score(arguments.model, weights, num_windows=arguments.windows)
    return row | drift_row(drift)


def round_weights(
    folder: Path, *, bits: int, group_size: int, sym: bool
) -> dict[str, Tensor]:
    """Every linear of the blocks rounded to nearest, as float32 (O, I)."""
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.numerics.grids import dequantize
    from lmi_build.numerics.rtn import round_to_nearest
    from lmi_build.quantizers.targets import find_architecture, select

    config = json.loads((folder / "config.json").read_text("utf-8"))
    weights: dict[str, Tensor] = {}
    with CheckpointReader(folder) as reader:
        shapes = {name: (e.dtype, e.shape) for name, e in reader.tensors.items()}
        linears = select(shapes, architecture=find_architecture(config), ignore=())
        for linear in linears:
            name = f"{linear.name}.weight"
            w_IO = reader.read(name).float().T.contiguous()
            found = round_to_nearest(w_IO, bits=bits, group_size=group_size, sym=sym)
            weights[name] = dequantize(
                found.code_IO, found.scale_GO, found.zero_GO
            ).T.contiguous()
    return weights


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="time the quantize stage")
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--method", default="gptq", choices=(*PROVIDER.info.methods, "rtn")
    )
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--asym", action="store_true")
    parser.add_argument("--in-order", action="store_true", help="desc_act: false")
    parser.add_argument("--damp-percent", type=float, default=0.01)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=20, help="0 does not compare")
    return parser.parse_args()


def read_facts(folder: Path) -> ModelFacts:
    """Facts of a local folder, from its headers."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tensors = [
        TensorFact(name=e.name, dtype=e.dtype, shape=e.shape, file=path.name)
        for path in sorted(folder.glob("*.safetensors"))
        for e in read_header(path).tensors.values()
    ]
    return ModelFacts(
        kind="folder",
        source=str(folder),
        location=str(folder),
        revision="",
        geometry=geometry_from_config(config),
        config=config,
        files=(),
        tensors=tuple(tensors),
        dtype=config.get("dtype") or config.get("torch_dtype") or "bfloat16",
    )


def run_stage(
    root: Path, model: Path, spec: QuantSpec, facts: ModelFacts, *, threads: int
) -> dict[str, Any]:
    """Run the worker in a process of its own and measure that process."""
    (root / "out").mkdir()
    job = {
        "params": PROVIDER.lower(spec, facts),
        "model": str(model),
        "out": str(root / "out"),
        "state": str(root / "state"),
        "settings": {"threads": threads, **PROVIDER.job_settings(spec)},
    }
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", WORKER, json.dumps(job)], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    weights = (root / "out").glob("*.safetensors")
    return {
        "method": spec.method,
        "bits": spec.bits,
        "group_size": spec.group_size,
        "sym": spec.sym,
        "desc_act": spec.desc_act,
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "system_seconds": round(used.ru_stime, 1),
        "wall_seconds": round(time.monotonic() - began, 1),
        "peak_rss_mb": round(used.ru_maxrss * 1024 / 1e6),
        "out_mb": round(sum(path.stat().st_size for path in weights) / 1e6, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def unpack(folder: Path) -> dict[str, Tensor]:
    """Quantized weights of a checkpoint as float32, by their source names."""
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.numerics.grids import dequantize
    from lmi_build.numerics.packing import unpack_rows, unpack_zeros

    config = json.loads((folder / "config.json").read_text("utf-8"))
    bits = config["quantization_config"]["bits"]
    weights: dict[str, Tensor] = {}
    with CheckpointReader(folder) as reader:
        for name in reader.tensors:
            if name.endswith(".qweight"):
                base = name.removesuffix(".qweight")
                code = unpack_rows(reader.read(name), bits=bits)
                zero = unpack_zeros(reader.read(f"{base}.qzeros"), bits=bits)
                scale = reader.read(f"{base}.scales").float()
                weights[f"{base}.weight"] = dequantize(code, scale, zero).T
    return weights


def score(model: Path, weights: dict[str, Tensor], *, num_windows: int) -> Drift:
    """Compare weights by source name with the float model on held-out windows."""
    import torch
    from transformers import AutoModelForCausalLM

    from lmi_build.numerics.compare import DriftMeter
    from lmi_build.quantizers.calibration import held_out_text, load_tokenizer

    tokens = load_tokenizer(model).encode(held_out_text()).ids
    ids = torch.tensor(tokens[: num_windows * WINDOW_TOKENS]).view(-1, WINDOW_TOKENS)
    reference, other = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        for _ in range(2)
    )
    state = other.state_dict()
    meter = DriftMeter()
    with torch.inference_mode():
        for name, weight in weights.items():
            state[name].copy_(weight)
        for window in ids:
            a = reference(window[None]).logits[0].numpy()
            b = other(window[None]).logits[0].numpy()
            meter.add(a, b, window.tolist())
    return meter.result()


if __name__ == "__main__":
    main()
