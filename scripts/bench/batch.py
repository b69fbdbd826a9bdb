"""
Tokens per second of an `onnxruntime` artifact by the number of prompts in a request.

    scripts/bench/batch.py ARTIFACT... [--repeats 3] [--prompt 64] [--answer 64]

ARTIFACT holds `lmi_build.json` and the engine folder; its bounds must allow four rows
and both lengths. Prompts differ in length, from `--prompt` down by one eighth for each
row. Ends of text are not waited for: every row gives `--answer` tokens, or the row is
counted with what it gave. Best of the repeats, one process for each artifact.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from lmi_build.package.handlers.onnxruntime_genai import Engine

BATCHES = (1, 2, 4)


def main() -> int:
    """Print one line of a table for each artifact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.alone:
        for artifact in arguments.artifacts:
            rest = [a for a in sys.argv[1:] if Path(a) not in arguments.artifacts]
            command = [sys.executable, __file__, str(artifact), *rest, "--alone"]
            subprocess.run(command, check=True)
        return 0
    engine = Engine(arguments.artifacts[0])
    cells = [f"{measure(engine, rows, arguments):.1f}" for rows in BATCHES]
    print(f"| {arguments.artifacts[0].name} | {' | '.join(cells)} |", flush=True)
    return 0


def measure(engine: Engine, rows: int, arguments: argparse.Namespace) -> float:
    """Tokens of all rows per second of the whole request, prompts included."""
    size, least = arguments.prompt, 10
    prompts = [
        [least + (7 * row + place) % 400 for place in range(size - row * size // 8)]
        for row in range(rows)
    ]
    wanted = {"max_new_tokens": arguments.answer}
    best = 0.0
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        texts = [engine.begin(ids, wanted) for ids in prompts]
        engine.finish(texts)
        seconds = time.perf_counter() - start
        best = max(best, sum(len(text.steps) for text in texts) / seconds)
    return best


if __name__ == "__main__":
    sys.exit(main())
