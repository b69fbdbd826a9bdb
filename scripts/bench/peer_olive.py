"""
lmi-build beside Microsoft Olive: same model, same calibration tokens, same scoring.

    python scripts/bench/peer_olive.py MODEL [--sides olive,ours] [--samples 64] ...

MODEL is a Hugging Face folder with float weights. Both sides quantize it by GPTQ to
4 bit (group 64, symmetric) on the same 64 windows of 512 tokens, build an ONNX Runtime
GenAI engine for the CPU, and do it all again with everything cached. Each step is one
command of that tool, in fresh processes with two threads:

| step | Olive | lmi-build |
|---|---|---|
| quantize | `olive run`, pass Gptq | `build --until quantize`, model fetched |
| engine | the same workflow and ModelBuilder, Gptq cached | `build --until compile` |
| cached | the same command again | the same command again |

Wall and CPU seconds and peak memory are measured by `usage.py`. The engines, and the
checkpoints they were made of, are scored by `kl.py`, one process each. Prints a
Markdown table; nothing else is written outside the work folder (`.cache/bench/olive`,
which also holds the peer's environment).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.store.store import Store

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import usage
from bench.usage import measure
from bench.venvs import make_venv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.usage import Usage

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REQUIREMENTS = HERE / "peer_olive.requirements.txt"
NUM_HELD_OUT = 20
SIDES = ("olive", "ours")


def environment(home: Path, *, threads: int) -> dict[str, str]:
    """What every measured command sees, and what keeps Olive silent."""
    return usage.environment(home, threads=threads) | {
        # Olive sends one message before it reads the first variable, and waits 10 s for
        # an answer where there is no network; with the second it stays silent.
        "OLIVE_DISABLE_TELEMETRY": "1",
        "CI": "true",
    }


def windows(model: Path, split: str, *, count: int, length: int, work: Path) -> Path:
    """A file of token windows, see `kl.py`."""
    out = work / f"{split}-{count}x{length}.json"
    command = [sys.executable, str(HERE / "kl.py"), "windows", "--model", str(model)]
    options = {"split": split, "count": count, "length": length, "out": out}
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True)
    return out


def olive_workflow(model: Path, calibration: Path, work: Path, passes: Any) -> Any:
    """A workflow document, as `olive run --config` reads it."""
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "input_model": {"type": "HfModel", "model_path": str(model)},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "host": "here",
        "target": "here",
        "data_configs": [
            {
                "name": "windows",
                "user_script": str(HERE / "peer_olive_data.py"),
                "load_dataset_config": {
                    "type": "token_windows",
                    "params": {"path": str(calibration)},
                },
                "dataloader_config": {"params": {"batch_size": 1}},
            }
        ],
        "passes": passes,
        "cache_dir": str(work / "olive-cache"),
        "log_severity_level": 1,
    }


def run_olive(
    model: Path, calibration: Path, work: Path, *, threads: int
) -> tuple[dict[str, Usage], dict[str, Path]]:
    """Measure Olive; returns usage by step, and what to score."""
    olive = str(make_venv(work / "venv", REQUIREMENTS) / "olive")
    gptq = {
        "type": "Gptq",
        "bits": 4,
        "group_size": 64,
        "sym": True,
        "data_config": "windows",
    }
    both = {"gptq": gptq, "builder": {"type": "ModelBuilder", "precision": "int4"}}
    shutil.rmtree(work / "olive-cache", ignore_errors=True)
    usages: dict[str, Usage] = {}
    for step in ("quantize", "engine", "cached"):
        passes = {"gptq": gptq} if step == "quantize" else both
        out = work / f"olive-{step}"
        shutil.rmtree(out, ignore_errors=True)
        document = olive_workflow(model, calibration, work, passes)
        document["output_dir"] = str(out)
        config = work / f"olive-{step}.json"
        config.write_text(json.dumps(document, indent=1))
        usages[step] = measure(
            [olive, "run", "--config", str(config)],
            environment=environment(work / "olive-home", threads=threads),
            log=work / f"olive-{step}.log",
        )
        # Olive ends with status 0 when a pass failed and there is no model.
        if not [*out.rglob("*.safetensors"), *out.rglob("*.onnx")]:
            sys.exit(f"Olive wrote no model, see {work / f'olive-{step}.log'}")
    checkpoint = next((work / "olive-quantize").rglob("model.safetensors")).parent
    engine = next((work / "olive-engine").rglob("genai_config.json")).parent
    return usages, {"checkpoint": checkpoint, "engine": engine}


def recipe_text(model: Path, *, samples: int, length: int) -> str:
    """Our recipe; JSON is YAML."""
    return json.dumps(
        {
            "schema": "lmi-build/v1",
            "name": "peer",
            "model": {"source": str(model)},
            "quantize": {
                "method": "gptq",
                "bits": 4,
                "group_size": 64,
                "sym": True,
                "calibration": {
                    "dataset": "builtin:python-docs",
                    "num_samples": samples,
                    "max_seq_len": length,
                    "seed": 0,
                },
            },
            "bounds": {"max_input_len": 512, "max_output_len": 128}
            | {"max_batch_size": 1},
            "compile": {"backend": "onnxruntime", "target": "cpu"},
        },
        indent=1,
    )


def run_ours(
    model: Path, work: Path, *, samples: int, length: int, threads: int
) -> tuple[dict[str, Usage], dict[str, Path]]:
    """Measure lmi-build; returns usage by step, and what to score."""
    recipe = work / "recipe.yaml"
    recipe.write_text(recipe_text(model, samples=samples, length=length))
    cache = work / "ours-cache"
    shutil.rmtree(cache, ignore_errors=True)
    scene = environment(work / "ours-home", threads=threads)
    command = [str(Path(sys.executable).parent / "lmi-build"), "build", str(recipe)]
    command += ["--output", "json", "--cache-dir", str(cache), "--until"]
    until = {"fetch": "fetch", "quantize": "quantize"}
    usages = {}
    for step in ("fetch", "quantize", "engine", "cached"):
        usages[step] = measure(
            [*command, until.get(step, "compile")],
            environment=scene,
            log=work / f"ours-{step}.json",
        )
    rows = json.loads((work / "ours-engine.json").read_text())["stages"]
    store = Store(cache)
    found = {}
    for role, kind in (("checkpoint", "quantize"), ("engine", "compile")):
        key = next(row["key"] for row in rows if row["kind"] == kind)
        result = store.lookup(key)
        if result is None:
            sys.exit(f"{kind} was built but is not in the store, key {key}")
        found[role] = work / f"ours-{role}"
        shutil.rmtree(found[role], ignore_errors=True)
        store.materialize(result, found[role])
    return usages, found


def score(model: Path, candidate: Path, held_out: Path, *, threads: int) -> Any:
    """Score one candidate by `kl.py` in a process of its own."""
    command = [sys.executable, str(HERE / "kl.py"), "score"]
    command += ["--reference", str(model), "--candidate", str(candidate)]
    command += ["--windows", str(held_out), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def table(results: Mapping[str, Any]) -> str:
    """Both sides as Markdown; the last column is ours over the peer's."""
    rows: list[tuple[str, str, list[float]]] = []
    sides = [side for side in SIDES if side in results]

    def add(name: str, form: str, path: Sequence[str], scale: float = 1.0) -> None:
        values = []
        for side in sides:
            value: Any = results[side]
            for part in path:
                value = value[part]
            values.append(value / scale)
        rows.append((name, form, values))

    for step in ("quantize", "engine", "cached"):
        add(f"{step}: wall, s", ".2f", ("usage", step, "wall"))
        add(f"{step}: CPU, s", ".2f", ("usage", step, "cpu"))
        add(f"{step}: peak memory, MiB", ".0f", ("usage", step, "peak"), 2**20)
    for role in ("checkpoint", "engine"):
        add(f"{role}: KL to float, nats", ".4f", ("score", role, "kl"))
        add(f"{role}: its standard error", ".4f", ("score", role, "kl_stderr"))
        add(f"{role}: top-1 agreement", ".3f", ("score", role, "top1"))
        add(f"{role}: perplexity", ".2f", ("score", role, "perplexity"))
        add(f"{role}: weights, MiB", ".1f", ("score", role, "weight_bytes"), 2**20)
    both = len(sides) == len(SIDES)
    lines = ["| | " + " | ".join([*sides, "ours / olive"][: 3 if both else 1]) + " |"]
    lines.append("|---" * (4 if both else 2) + "|")
    for name, form, values in rows:
        cells = [format(value, form) for value in values]
        if both:
            cells.append(f"{values[1] / values[0]:.2f}" if values[0] else "-")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("model", type=Path, help="Hugging Face folder, float weights")
    parser.add_argument("--sides", default=",".join(SIDES), help="which to run")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/bench/olive")
    return parser.parse_args()


def kept(work: Path, side: str, texts: str) -> Any:
    """What an earlier run measured of a side, if it was on the same windows."""
    path = work / f"{side}.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return result if result["windows"] == texts else None


def main() -> None:
    """Run the chosen sides and print them, beside what is kept of the other."""
    args = _arguments()
    model, work = args.model.resolve(), args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    held_out = windows(model, "held-out", count=NUM_HELD_OUT, length=512, work=work)
    shape = {"count": args.samples, "length": args.length}
    calibration = windows(model, "calibration", **shape, work=work)
    texts = hashlib.sha256(held_out.read_bytes() + calibration.read_bytes()).hexdigest()
    for side in args.sides.split(","):
        if side == "olive":
            usages, found = run_olive(model, calibration, work, threads=args.threads)
        else:
            usages, found = run_ours(
                model,
                work,
                samples=args.samples,
                length=args.length,
                threads=args.threads,
            )
        scores = {
            role: score(model, folder, held_out, threads=args.threads)
            for role, folder in found.items()
        }
        document = {
            "windows": texts,
            "usage": {step: asdict(value) for step, value in usages.items()},
            "score": scores,
        }
        (work / f"{side}.json").write_text(json.dumps(document, indent=1))
    results = {side: kept(work, side, texts) for side in SIDES}
    print(table({side: result for side, result in results.items() if result}))


if __name__ == "__main__":
    main()
