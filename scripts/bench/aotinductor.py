"""
Decoding with AOTInductor engines, one row for each checkpoint.

    scripts/bench/aotinductor.py --work DIR LABEL=CHECKPOINT[,dtype=..][,head=int8] ...

Compiles each checkpoint once (the folder is kept), then loads it in a fresh process
and answers one prompt greedily: seconds to load, milliseconds of the prompt, tokens
per second, and the bytes of weights that a token reads as a share of what this
machine copies per second. `--peer FOLDER` measures transformers on a float model in
the same run. Threads: torch's default, one per core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUNDS = {
    "max_input_len": 128,
    "max_output_len": 128,
    "max_seq_len": 256,
    "max_batch_size": 1,
}
PROMPT, ANSWER, REPEATS = 64, 64, 3
# What a token reads one row of, or nothing.
_LOOKED_UP = ("decoder.positions", "decoder.cos_", "decoder.sin_")


def main() -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return 0
    print(f"copy: {copy_bytes_per_second() / 1e9:.1f} GB/s")
    for row in arguments.rows:
        label, _, rest = row.partition("=")
        folder, *options = rest.split(",")
        place = arguments.work / label
        seconds = build(Path(folder), place, dict(o.split("=") for o in options))
        command = [sys.executable, __file__, "--work", place, "--one", place]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        share = found["tokens_per_s"] * found["bytes"] / copy_bytes_per_second()
        built = f"{seconds:.0f} s to compile, " if seconds else ""
        print(
            f"{label}: {built}{found['load_s']:.2f} s to load, prompt of {PROMPT}"
            f" {found['prompt_ms']:.0f} ms, {found['tokens_per_s']:.1f} tokens/s,"
            f" {found['bytes'] / 1e6:.0f} MB a token, {share:.0%} of copy",
            flush=True,
        )
    if arguments.peer:
        for dtype in ("float32", "bfloat16"):
            rate = transformers_rate(arguments.peer, dtype)
            print(f"transformers {dtype}: {rate:.1f} tokens/s", flush=True)
    return 0


def build(checkpoint: Path, place: Path, options: dict[str, str]) -> float:
    """Compile once; seconds, or 0 where it was there."""
    from lmi_build.backends.aotinductor import worker
    from lmi_build.backends.aotinductor.options import Options
    from lmi_build.spi import Job

    out, state = place / "engine", place / "state"
    if (out / worker.RECORD_NAME).is_file():
        return 0.0
    out.mkdir(parents=True, exist_ok=True)
    state.mkdir(exist_ok=True)
    start = time.perf_counter()
    worker.run(
        Job(
            stage="bench/compile",
            params={
                "batch_sizes": [1],
                "compute_capability": "",
                "context_buckets": list(Options().buckets(BOUNDS["max_input_len"])),
                "device": "cpu",
                "dtype": options.get("dtype", "float32"),
                "isa": options.get("isa", "avx512"),
                "lm_head_dtype": options.get("head", "checkpoint"),
                "max_seq_len": BOUNDS["max_seq_len"],
            },
            inputs={"checkpoint": checkpoint},
            out=out,
            state=state,
        ),
        lambda _: None,
    )
    settings = {"engine_dir": "engine", "bounds": BOUNDS}
    (place / "lmi_build.json").write_text(json.dumps(settings))
    return time.perf_counter() - start


def measure(place: Path) -> dict[str, float]:
    """One engine, in this process."""
    import torch  # noqa: F401 - its import is not the engine's to load

    from lmi_build.package.handlers.aotinductor import Engine

    start = time.perf_counter()
    engine = Engine(place)
    load_s = time.perf_counter() - start
    ids = [2 + 7 * place % 997 for place in range(PROMPT)]
    prompt, rate = 1e9, 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        logits = engine.session.prefill(0, ids)
        prompt = min(prompt, time.perf_counter() - start)
        token = int(logits.argmax())
        start = time.perf_counter()
        for _ in range(ANSWER):
            token = int(engine.session.step({0: token})[0].argmax())
        rate = max(rate, ANSWER / (time.perf_counter() - start))
    return {
        "load_s": load_s,
        "prompt_ms": prompt * 1e3,
        "tokens_per_s": rate,
        "bytes": float(sum(read_sizes(place / "engine/weights.safetensors"))),
    }


def read_sizes(weights: Path) -> Iterator[int]:
    """Bytes of each tensor that every token reads whole."""
    from lmi_build.checkpoint.header import read_header

    tensors = read_header(weights).tensors
    own_head = any(name.startswith("decoder.head.") for name in tensors)
    for name, entry in tensors.items():
        looked_up = (*_LOOKED_UP, *(["decoder.embedding"] if own_head else []))
        if not name.startswith(looked_up):
            yield entry.num_bytes


def copy_bytes_per_second() -> float:
    """What this machine reads while it copies, best of some."""
    import torch

    source = torch.zeros(256 << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = 1e9
    for _ in range(8):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return source.numel() / best


def transformers_rate(folder: Path, dtype: str) -> float:
    """Greedy tokens per second of the float model."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype)
    ).eval()
    ids = torch.tensor([[2 + 7 * place % 997 for place in range(PROMPT)]])
    rate = 0.0
    with torch.inference_mode():
        for _ in range(REPEATS):
            found = model(ids, use_cache=True)
            token = found.logits[:, -1:].argmax(-1)
            start = time.perf_counter()
            for _ in range(ANSWER):
                found = model(
                    token, past_key_values=found.past_key_values, use_cache=True
                )
                token = found.logits[:, -1:].argmax(-1)
            rate = max(rate, ANSWER / (time.perf_counter() - start))
    return rate


if __name__ == "__main__":
    sys.exit(main())
