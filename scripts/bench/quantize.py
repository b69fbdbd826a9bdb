"""
Our quantizer beside the libraries: one run, the same model, tokens and scoring.

    python scripts/bench/quantize.py MODEL [--peer llmcompressor[=PYTHON]] ...
        [--reference plain,dithered,outlier,random] [--only TOOL:METHOD ...]
        [--seeds 0,1,2] [--samples 64] [--resume] [--no-score]

MODEL is a Hugging Face folder with float weights. A row is one tool's method on one
reference model (`quantize_models.py`): it runs in a process group of its own, with two
threads, after its model's files were read once, and is measured twice: the whole
process (`usage.py`), and the quantizing call alone, model loaded before, checkpoint
written within (`quantize_job.py`; for ours loading is inside). Then `kl.py` scores the
checkpoint in another process, on 20 held-out windows of 1024 tokens.

Rows are written to the results file as they come; `--resume` goes on where an earlier
run stopped, scores what was not scored, and leaves finished rows alone. A row that
fails is a row that says why. At the end: a Markdown table and the goals
(`quantize_goals.py`). `--scaling` measures ours on random Llamas of several depths and
token counts instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import kl
from bench.quantize_goals import goals_table, judge
from bench.quantize_job import RECORD
from bench.quantize_results import Results, scaling_costs, scaling_table, table
from bench.quantize_rows import OURS, PEERS, Row
from bench.usage import CommandFailed, environment, measure
from bench.venvs import make_venv
from lmi_build.execute.launch import PROCESS_VARIABLES
from lmi_build.quantizers.external.readable import make_readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HELD_OUT_COUNT, HELD_OUT_LENGTH = 20, 1024
REFERENCES = ("plain", "dithered", "outlier", "random")
# Four blocks of a width that large models share; see `quantize_models.make_random`.
RANDOM_LAYERS = 12
SCALING = ((8, 8), (8, 16), (8, 32), (16, 8), (32, 8))

REQUIREMENTS = {
    "autoawq": HERE / "quantize_autoawq.requirements.txt",
    "llmcompressor": HERE / "quantize_llmcompressor.requirements.txt",
    # The environment that checkpoints are loaded in has what quantizing needs.
    "gptqmodel": HERE / "formats.requirements.txt",
}


def busy_seconds() -> float:
    """Seconds that all cores together were busy since the machine started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def read_once(folder: Path) -> None:
    """Bring a model's files into the page cache, for every row alike."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def windows_file(row: Row, work: Path) -> Path:
    """The row's calibration windows, drawn by our own code for every tool."""
    kind = "random" if row.reference.startswith("random") else "text"
    out = work / f"windows-{kind}-{row.samples}x{row.length}-seed{row.seed}.json"
    if not out.exists():
        found = kl.calibration_windows(
            row.model, count=row.samples, length=row.length, seed=row.seed
        )
        out.write_text(json.dumps(found))
    return out


def run_row(
    row: Row, python: str, work: Path, *, threads: int, timeout: float
) -> dict[str, Any]:
    """Quantize once; the record has `error` instead of measures when it fails."""
    folder = work / "rows" / row.key.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    identity = {
        "tool": row.tool,
        "method": row.method,
        "reference": row.reference,
        "samples": row.samples,
        "length": row.length,
        "seed": row.seed,
        "options": dict(row.options),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }
    try:
        model = row.model
        if row.tool == "autoawq":
            model = folder / "model"
            model.mkdir()
            make_readable(row.model, model, major=4)
        job = identity | {
            "model": str(model),
            "windows": str(windows_file(row, work)),
            "out": str(folder / "out"),
            "threads": threads,
        }
        (folder / "job.json").write_text(json.dumps(job))
        read_once(row.model)
        load, busy = os.getloadavg()[0], busy_seconds()
        scene = environment(work / "home", threads=threads)
        # Some tools start compilers of their environment.
        scene["PATH"] = f"{Path(python).parent}:{scene['PATH']}"
        if row.tool == "ours":
            scene |= PROCESS_VARIABLES  # as `build` starts a worker
        whole = measure(
            [python, str(HERE / f"quantize_{row.tool}.py"), str(folder / "job.json")],
            environment=scene,
            log=folder / "log.txt",
            timeout=timeout,
        )
    except (CommandFailed, Exception) as error:  # noqa: BLE001 - a row like any other
        return identity | {"error": str(error)[-1500:]}
    others = max(0.0, busy_seconds() - busy - whole.cpu) / whole.wall
    return identity | {
        "whole": asdict(whole),
        "call": json.loads((folder / RECORD).read_text()),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "cores_used_by_others": others,
        "weight_bytes": kl.weight_bytes(folder / "out"),
        "checkpoint": str(folder / "out"),
    }


def score_row(
    record: dict[str, Any], model: Path, work: Path, *, threads: int
) -> dict[str, Any]:
    """The record with its score, or with the error of scoring."""
    held_out = work / f"held-out-{HELD_OUT_COUNT}x{HELD_OUT_LENGTH}.json"
    if not held_out.exists():
        kl.write_windows(
            model,
            split="held-out",
            count=HELD_OUT_COUNT,
            length=HELD_OUT_LENGTH,
            out=held_out,
        )
    command = [sys.executable, str(HERE / "kl.py"), "score", "--reference", str(model)]
    command += ["--candidate", record["checkpoint"], "--windows", str(held_out)]
    command += ["--threads", str(threads), "--cache", str(work / "float")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        return record | {"score_error": done.stderr[-1500:]}
    shutil.rmtree(Path(record["checkpoint"]).parent / "state", ignore_errors=True)
    return record | {"score": json.loads(done.stdout)}


def prepare(name: str, model: Path, work: Path) -> Path:
    """
    The folder of a reference model, made on first use.

    In a process of its own: what this one holds when it starts a row counts as the
    row's peak, since a child begins as a copy.
    """
    if name == "plain":
        return model
    out = work / "models" / name
    if (out / "model.safetensors").exists():
        return out
    words = [name, str(model), str(out)]
    if name.startswith("random"):
        layers = name.partition("-")[2] or str(RANDOM_LAYERS)
        words = ["random", str(out), "--layers", layers]
    command = [sys.executable, str(HERE / "quantize_models.py"), *words]
    subprocess.run(command, check=True)
    return out


def interpreters(peers: Sequence[str], work: Path) -> dict[str, str]:
    """Each tool's interpreter; a peer without a path is installed."""
    found = {"ours": sys.executable}
    for peer in peers:
        tool, _, python = peer.partition("=")
        if tool not in PEERS:
            sys.exit(f"--peer {tool}: known are {', '.join(PEERS)}")
        if not python:
            python = str(
                make_venv(work / f"venv-{tool}", REQUIREMENTS[tool]) / "python"
            )
        found[tool] = python
        if tool == "gptqmodel":
            warm = [python, str(HERE / "quantize_gptqmodel.py"), "--warm-up"]
            scene = environment(work / "home", threads=os.cpu_count() or 1)
            scene["PATH"] = f"{Path(python).parent}:{scene['PATH']}"
            subprocess.run(warm, env=scene, check=True, capture_output=True)
    return found


def planned(args: argparse.Namespace, tools: Sequence[str]) -> Iterator[Row]:
    """The rows to run, a reference after the other, ours beside the peers'."""
    ours = dict(OURS)
    for text in args.row:
        name, _, options = text.partition("=")
        ours[name] = json.loads(options)
    every = {"ours": ours} | {tool: PEERS[tool] for tool in tools if tool in PEERS}
    chosen = [
        (tool, method)
        for method in dict.fromkeys(x for methods in every.values() for x in methods)
        for tool in every
        if method in every[tool]
    ]
    if args.only:
        wanted = [tuple(x.split(":", 1)) for x in args.only]
        unknown = [":".join(x) for x in wanted if x not in chosen]
        if unknown:
            sys.exit(f"--only {' '.join(unknown)}: not among {chosen}")
        chosen = [(str(tool), str(method)) for tool, method in wanted]
    for reference in args.reference.split(","):
        model = prepare(reference, args.model, args.work)
        for seed in map(int, args.seeds.split(",")):
            for tool, method in chosen:
                yield Row(
                    tool=tool,
                    method=method,
                    options=every[tool][method],
                    reference=reference,
                    model=model,
                    samples=args.samples,
                    length=args.length,
                    seed=seed,
                )


def scaling(args: argparse.Namespace) -> Iterator[Row]:
    """Ours on random Llamas: more tokens at one depth, more layers at one length."""
    for layers, samples in SCALING:
        reference = f"random-{layers}"
        yield Row(
            tool="ours",
            method="gptq-sym",
            options=OURS["gptq-sym"],
            reference=reference,
            model=prepare(reference, args.model, args.work),
            samples=samples,
            length=args.length,
            seed=0,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    add = parser.add_argument
    add("model", type=Path, help="Hugging Face folder, float weights")
    add("--peer", action="append", default=[], metavar="TOOL[=PYTHON]")
    add("--reference", default="plain", help=f"of {', '.join(REFERENCES)}")
    add("--only", nargs="+", default=[], metavar="TOOL:METHOD")
    add("--row", action="append", default=[], metavar="NAME=JSON", help="more of ours")
    add("--seeds", default="0")
    add("--samples", type=int, default=64, help="calibration windows")
    add("--length", type=int, default=512, help="tokens of a window")
    add("--threads", type=int, default=2)
    add("--timeout", type=float, default=1800.0, help="seconds of one row")
    add("--resume", action="store_true", help="keep finished rows")
    add("--no-score", action="store_true", help="score in a later --resume")
    add("--scaling", action="store_true", help="layers and tokens, ours only")
    add("--work", type=Path, default=ROOT / ".cache/bench/quantize")
    add("--out", type=Path, help="results file; WORK/results.json")
    return parser.parse_args()


def main() -> None:
    """Run what is planned and print the tables."""
    args = _arguments()
    args.model, args.work = args.model.resolve(), args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    out = args.out or args.work / "results.json"
    results = Results.open(out.resolve(), resume=args.resume)
    tools = interpreters(args.peer, args.work)
    for row in scaling(args) if args.scaling else planned(args, list(tools)):
        record = results.rows.get(row.key)
        if record is None or "error" in record:
            print(f"{time.strftime('%H:%M:%S')} {row.key}", file=sys.stderr, flush=True)
            record = run_row(
                row,
                tools[row.tool],
                args.work,
                threads=args.threads,
                timeout=args.timeout,
            )
            results.put(row.key, record)
        unscored = "checkpoint" in record and "score" not in record
        if unscored and not args.no_score and not row.reference.startswith("random"):
            record = score_row(record, row.model, args.work, threads=args.threads)
            results.put(row.key, record)
    print(table(results.rows))
    if costs := scaling_costs(results.rows):
        print("\n" + scaling_table(costs))
    print("\n" + goals_table(judge(results.rows)))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
