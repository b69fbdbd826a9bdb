"""
Conversion to a TensorRT-LLM checkpoint beside `cp` of the same bytes, at two depths.

The model is a Llama of random bfloat16 weights, in the page cache before each run. Both
sides write, flush to the disk (`fsync`) and are timed until then, in turns; the fastest
of the rounds counts. Speed is of bytes written, which are more than the model's where
several ranks hold the embedding. Conversion is timed inside its process (`run`): to
start Python and import torch costs the same for any model. The table has the whole
process as well, and peak memory is of it. Prints a Markdown table.

    trtllm_checkpoint.py [--folder DIR] [--layers 8 32] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import usage  # type: ignore[import-not-found, unused-ignore]

from lmi_build.checkpoint.reader import SINGLE_NAME
from lmi_build.checkpoint.writer import TensorPlan, write_file

_MIB = 1 << 20
_GOAL = 0.7
_HIDDEN, _INNER, _HEADS, _KEYS, _WIDTH, _VOCABULARY = 2048, 8192, 32, 8, 64, 32000
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": _HIDDEN,
    "intermediate_size": _INNER,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KEYS,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": _VOCABULARY,
}
# How each run differs: dtype of the checkpoint, ranks of a layer, pipeline stages.
_RUNS = (("bfloat16", 1, 1), ("bfloat16", 4, 1), ("bfloat16", 2, 2), ("float16", 4, 1))

_CONVERT = """
import sys, time
from pathlib import Path
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.checkpoint_worker import checkpoint_params, run
from lmi_build.events import ignore
from lmi_build.spi import Job
import torch
import lmi_build.backends.trtllm.checkpoint_codes
import lmi_build.checkpoint.formats.config
source, out, dtype, tp, pp = sys.argv[1:]
torch.set_num_threads(1)
mapping = Mapping2D(tp=int(tp), pp=int(pp))
job = Job(stage="bench", params=checkpoint_params("0.16.0", dtype, mapping),
          inputs={"checkpoint": Path(source)}, out=Path(out), state=Path(out))
begin = time.perf_counter()
run(job, ignore)
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """
    One side's best round.

    Args:
        seconds: Of the work alone.
        wall: Of the whole process; 0 for `cp`.
        peak: Bytes of memory; 0 for `cp`.
        num_bytes: Written; every rank of the first stage has the whole embedding.
    """

    seconds: float
    wall: float = 0.0
    peak: int = 0
    num_bytes: int = 0

    @property
    def rate(self) -> float:
        """Bytes written per second."""
        return self.num_bytes / self.seconds


def make_model(folder: Path, num_layers: int) -> Path:
    """A Llama whose weights are random bits of small numbers."""
    folder.mkdir(parents=True)
    shapes = {
        "model.embed_tokens": (_VOCABULARY, _HIDDEN),
        "model.norm": (_HIDDEN,),
        "lm_head": (_VOCABULARY, _HIDDEN),
    }
    for layer in range(num_layers):
        block = f"model.layers.{layer}"
        for name, shape in (
            ("self_attn.q_proj", (_HEADS * _WIDTH, _HIDDEN)),
            ("self_attn.k_proj", (_KEYS * _WIDTH, _HIDDEN)),
            ("self_attn.v_proj", (_KEYS * _WIDTH, _HIDDEN)),
            ("self_attn.o_proj", (_HIDDEN, _HEADS * _WIDTH)),
            ("mlp.gate_proj", (_INNER, _HIDDEN)),
            ("mlp.up_proj", (_INNER, _HIDDEN)),
            ("mlp.down_proj", (_HIDDEN, _INNER)),
            ("input_layernorm", (_HIDDEN,)),
            ("post_attention_layernorm", (_HIDDEN,)),
        ):
            shapes[f"{block}.{name}"] = shape
    plans = [
        TensorPlan(name=f"{name}.weight", dtype="bfloat16", shape=shape)
        for name, shape in sorted(shapes.items())
    ]
    sizes = {plan.name: plan.num_bytes for plan in plans}
    # Exponents below 2, so that float16 holds every number.
    noise = bytearray(os.urandom(_MIB))
    noise[1::2] = bytes(0x38 | byte & 0x87 for byte in noise[1::2])

    def data(name: str) -> list[memoryview]:
        whole, rest = divmod(sizes[name], _MIB)
        return [memoryview(noise)] * whole + [memoryview(noise)[:rest]]

    write_file(folder / SINGLE_NAME, plans, data)
    config = {**_CONFIG, "num_hidden_layers": num_layers}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def time_copy(source: Path, out: Path) -> Timing:
    """`cp` and a flush."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    begin = time.perf_counter()
    subprocess.run(["/bin/cp", str(source / SINGLE_NAME), str(out)], check=True)
    descriptor = os.open(out / SINGLE_NAME, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    seconds = time.perf_counter() - begin
    size = weights_size(out)
    shutil.rmtree(out)
    return Timing(seconds=seconds, num_bytes=size)


def time_conversion(source: Path, out: Path, run: tuple[str, int, int]) -> Timing:
    """The worker's `run` in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    log = out.with_suffix(".log")
    words = [str(source), str(out), *map(str, run)]
    cost = usage.measure(
        [sys.executable, "-c", _CONVERT, *words], environment=dict(os.environ), log=log
    )
    seconds = float(log.read_text().split()[-1])
    size = weights_size(out)
    shutil.rmtree(out)
    return Timing(seconds=seconds, wall=cost.wall, peak=cost.peak, num_bytes=size)


def weights_size(folder: Path) -> int:
    """Bytes of all weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def warm(path: Path) -> None:
    """Read a file into the page cache."""
    with path.open("rb") as stream:
        while stream.read(_MIB):
            pass


def best(timings: list[Timing]) -> Timing:
    """The fastest round, with the most memory of any."""
    fastest = min(timings, key=lambda timing: timing.seconds)
    peak = max(timing.peak for timing in timings)
    return replace(fastest, peak=peak)


def compare(root: Path, num_layers: int, rounds: int) -> list[str]:
    """Rows of the table for one depth."""
    source = make_model(root / f"model-{num_layers}", num_layers)
    out = root / "out"
    pairs: dict[tuple[str, int, int], list[tuple[Timing, Timing]]] = {}
    for _ in range(rounds):
        for run in _RUNS:
            warm(source / SINGLE_NAME)
            copy = time_copy(source, out)
            pairs.setdefault(run, []).append((copy, time_conversion(source, out, run)))
    shutil.rmtree(source)
    rows = []
    for (dtype, tp, pp), timings in pairs.items():
        copy, found = best([x for x, _ in timings]), best([x for _, x in timings])
        ratio = found.rate / copy.rate
        missed = " (!)" if ratio < _GOAL else ""
        rows.append(
            f"| {num_layers} | {dtype}, tp {tp}, pp {pp} | {copy.rate / 1e6:.0f} |"
            f" {found.rate / 1e6:.0f} | {found.seconds:.2f} | {found.wall:.2f} |"
            f" {found.peak / _MIB:.0f} | {ratio:.2f}{missed} |"
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to work; deleted afterwards")
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    print(
        "| layers | checkpoint | `cp`, MB/s | ours, MB/s | ours, s |"
        " whole process, s | peak RSS, MiB | of `cp`'s speed |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        for num_layers in options.layers:
            for row in compare(Path(root), num_layers, options.rounds):
                print(row, flush=True)
    print(f"\nGoal: at least {_GOAL:.0%} of `cp` where no number changes.")


if __name__ == "__main__":
    main()
