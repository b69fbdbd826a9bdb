"""
What planning and rendering many recipes as jobs costs, in a fresh process.

    python scripts/bench/jobs.py MODEL... [--recipes 200] [--repeats 5]

Writes so many recipes, each with lengths of its own, over four methods and all the
models, and times `lmi-build job render` of all of them as one graph: every request is
made and held against the service model. Then it is checked that every recipe's stages
stand in exactly one job, and that stages which recipes share stand once: one source for
each model, one quantization for each model and method. Exits with 1 over the limit of
5 seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cli_times import Case, time_case

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT_SECONDS = 5.0
METHODS = ("none", "gptq", "awq", "rtn")
_RECIPE = """\
schema: lmi-build/v1
name: bench-{number}
model: {{source: {model}}}
quantize: {{method: {method}{more}}}
bounds: {{max_input_len: {length}, max_output_len: 16}}
compile: {{backend: onnxruntime}}
job:
  store: s3://my-models/lmi-build
  role: arn:aws:iam::111122223333:role/lmi-build
  region: us-east-1
  image: 111122223333.dkr.ecr.us-east-1.amazonaws.com/lmi-build:1
"""


def write_recipes(folder: Path, models: Sequence[Path], count: int) -> list[Path]:
    """As many recipes as asked for, no two with the same engine."""
    files = []
    for number in range(count):
        method = METHODS[number % len(METHODS)]
        model = models[number // len(METHODS) % len(models)]
        text = _RECIPE.format(
            number=number,
            model=model.absolute(),
            method=method,
            more="" if method == "none" else ", group_size: 64",
            length=32 + number // (len(METHODS) * len(models)),
        )
        files.append(folder / f"recipe-{number}.yaml")
        files[-1].write_text(text)
    return files


def check(command: Sequence[str], *, num_recipes: int, num_models: int) -> int:
    """
    Make sure that the graph is what it should be; returns the number of its stages.

    Raises:
        SystemExit: A stage is missing, doubled or not shared.
    """
    done = subprocess.run(
        [*command, "--output", "json"], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    rows = [*found["local"], *(row for job in found["jobs"] for row in job["stages"])]
    keys = [row["key"] for row in rows]
    kinds = [row["name"].rpartition("/")[2] for row in rows]
    wanted = {
        "fetch": num_models,
        "quantize": num_models * (len(METHODS) - 1),
        "compile": num_recipes,
        "package": num_recipes,
        "verify": num_recipes,
    }
    counts = {kind: kinds.count(kind) for kind in wanted}
    if counts != wanted or len(set(keys)) != len(keys):
        sys.exit(f"the graph has {counts}, not {wanted}")
    return len(rows)


def main() -> None:
    """Time it and print the row."""
    parser = argparse.ArgumentParser(description="time many recipes as jobs")
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--recipes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    ours = str(Path(sys.executable).parent / "lmi-build")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_recipes(folder, arguments.models, arguments.recipes)
        command = [ours, "job", "render", *map(str, files)]
        stages = check(
            command,
            num_recipes=len(files),
            num_models=len(arguments.models),
        )
        case = Case(name="job render", command=command, limit=LIMIT_SECONDS, wall=True)
        times = time_case(case, repeats=arguments.repeats, scratch=folder)
    best, middle = min(times.wall), statistics.median(times.wall)
    print("| recipes | models | stages | wall best, s | median | CPU best, s | limit |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {len(files)} | {len(arguments.models)} | {stages} | {best:.2f} |"
        f" {middle:.2f} | {min(times.cpu):.2f} | {LIMIT_SECONDS:.0f} wall |"
    )
    if best > LIMIT_SECONDS:
        sys.exit(1)


if __name__ == "__main__":
    main()
