"""
Engines of SmolLM2 by every method, on both backends that run on CPUs.

    python scripts/bench/engines.py --work DIR [--only awq] [--only gptq.onnx] ...

Builds and verifies the recipes `recipes/smollm2-135m/METHOD.BACKEND.cpu.yaml`, then
loads each artifact by its own handler, in a process of its own, and answers one prompt.
At last `lmi-build serve` answers the recipe's own prompt over HTTP, which must be the
answer that `verify` had.
Results lie in a store under DIR: a run that was cut off goes on where it was, and the
seconds of a stage are those of the run that did it. `--set` is passed to every recipe
and stands in the table's head. A gate that is missed is told, with its numbers, below.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lmi_build import api
from lmi_build.errors import GateFailed, LmiBuildError
from lmi_build.package.engine import load_engine
from lmi_build.values.settings import settings_from_environ
from lmi_build.verify.integrity import read_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.values.result import BuildResult
    from lmi_build.values.settings import Settings

RECIPES = Path(__file__).parents[2] / "recipes" / "smollm2-135m"
METHODS = ("none", "int8", "smoothquant", "awq", "gptq")
BACKENDS = ("onnxruntime", "aotinductor")
PROMPT = "The capital of France is"
NEW_TOKENS, REPEATS = 64, 4
# Made once for all methods.
_SHARED = ("fetch", "calibration")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """
    One line of the table.

    Args:
        method: Of quantization.
        backend: Whose engine.
        engine_bytes: All files of the engine's folder.
        seconds: Wall time of every stage but those that methods share.
        cpu_seconds: Their CPU time.
        drift: What `verify` measured; None where a gate was missed.
        tokens_per_second: Of decoding, the best of the repeats.
        load_seconds: Of the handler and its engine.
        answer: What it says over HTTP.
    """

    method: str
    backend: str
    engine_bytes: int
    seconds: float
    cpu_seconds: float
    drift: dict[str, Any] | None
    tokens_per_second: float
    load_seconds: float
    answer: str = ""


def main() -> int:
    """Build, verify, measure and print; 1 where a gate was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[], metavar="PART")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    settings = settings_from_environ(
        os.environ, cache_dir=arguments.work / "store", offline=True
    )
    rows, told = [], []
    for method, backend in chosen(arguments.only):
        try:
            row, missed = measure(
                method, backend, arguments.work, settings, arguments.overrides
            )
        except LmiBuildError as error:
            told.append(f"- {method}.{backend} ends with `{error.code}`: {error}")
            continue
        rows.append(row)
        told += missed
    print(f"load {os.getloadavg()[0]:.1f}; {' '.join(arguments.overrides)}".rstrip())
    said = [f"- {row.method}.{row.backend} answers {row.answer!r}" for row in rows]
    print("\n".join([table(rows), "", *said, *told]).strip())
    return 1 if told else 0


def chosen(only: Sequence[str]) -> list[tuple[str, str]]:
    """Method and backend of each recipe whose name holds one of the parts."""
    pairs = [(method, backend) for backend in BACKENDS for method in METHODS]
    return [
        (method, backend)
        for method, backend in pairs
        if not only or any(part in f"{method}.{backend}" for part in only)
    ]


def measure(
    method: str,
    backend: str,
    work: Path,
    settings: Settings,
    overrides: Sequence[str],
) -> tuple[Row, list[str]]:
    """
    One recipe's row, and what is to be told of it.

    Raises:
        LmiBuildError: A stage failed for another reason than a gate.
    """
    path = RECIPES / f"{method}.{backend}.cpu.yaml"
    (recipe,) = api.load_recipe(path, overrides=overrides)
    plan = api.make_plan([recipe], settings)
    missed, drift, wanted = [], None, None
    try:
        done = api.build(plan, settings)
        out, _ = api.write_artifact(done, recipe.name, work / "artifacts", settings)
        report = out.with_name(f"{recipe.name}.verify.json")
        found = json.loads(report.read_bytes())
        drift, wanted = found["drift"], found["answers"][0]["text"]
    except GateFailed as error:
        missed = [f"- {method}.{backend}: {error.message}"]
        done = api.build(plan, settings, until="package")
        out, _ = api.write_artifact(done, recipe.name, work / "artifacts", settings)
    rate, load = isolated_speed(out)
    answer = served_answer(out, recipe.verify.prompts[0], recipe.bounds.max_output_len)
    if wanted is not None and answer != wanted:
        missed.append(
            f"- {method}.{backend} answers {answer!r} over HTTP,"
            f" `verify` had {wanted!r}"
        )
    seconds, cpu_seconds = cost(done)
    row = Row(
        method=method,
        backend=backend,
        engine_bytes=engine_bytes(out),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        drift=drift,
        tokens_per_second=rate,
        load_seconds=load,
        answer=answer,
    )
    print(line(row), flush=True)
    return row, missed


def cost(done: BuildResult) -> tuple[float, float]:
    """Wall and CPU seconds of what one method does alone."""
    own = [row.result.measure for row in done.rows if row.kind not in _SHARED]
    return sum(m.seconds for m in own), sum(m.cpu_seconds for m in own)


def engine_bytes(artifact: Path) -> int:
    """All files of the engine's folder."""
    folder = artifact / str(read_manifest(artifact).serving["engine_dir"])
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def isolated_speed(artifact: Path) -> tuple[float, float]:
    """`speed` in a fresh process, so that no thread pool disturbs another."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(speed, artifact).result()


def speed(artifact: Path) -> tuple[float, float]:
    """Tokens per second after the first token, and seconds to load."""
    start = time.perf_counter()
    engine = load_engine(artifact, read_manifest(artifact)).engine
    load = time.perf_counter() - start
    ids = engine.encode(PROMPT)
    best = 0.0
    for _ in range(REPEATS):
        # The first token waits for the prompt; an answer may end early.
        times = [
            time.perf_counter()
            for _ in engine.stream(ids, {"max_new_tokens": NEW_TOKENS})
        ]
        if len(times) > 1:
            best = max(best, (len(times) - 1) / (times[-1] - times[0]))
    return best, load


def served_answer(artifact: Path, prompt: str, max_tokens: int) -> str:
    """
    What `lmi-build serve` answers to one message, greedily.

    Raises:
        RuntimeError: The server ended, or answered with another status than 200.
    """
    command = Path(sys.executable).with_name("lmi-build")
    with subprocess.Popen(
        [str(command), "serve", str(artifact), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        started = process.stdout.readline() if process.stdout else ""
        if not started:
            raise RuntimeError(f"`serve` ended with status {process.wait()}")
        try:
            return ask(urlsplit(json.loads(started)["url"]).netloc, prompt, max_tokens)
        finally:
            process.terminate()


def ask(host: str, prompt: str, max_tokens: int) -> str:
    """The answer to one message; `RuntimeError` for another status than 200."""
    message = {"role": "user", "content": prompt}
    wish = {"messages": [message], "temperature": 0, "max_tokens": max_tokens}
    connection = http.client.HTTPConnection(host, timeout=300)
    with closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(wish))
        response = connection.getresponse()
        body = response.read()
    if response.status != http.client.OK:
        raise RuntimeError(f"status {response.status}: {body[:200]!r}")
    return str(json.loads(body)["choices"][0]["message"]["content"])


def line(row: Row) -> str:
    """A row of the table."""
    drift = row.drift or {}
    measures = [
        f"{drift[name]:.4g}" if name in drift else "-"
        for name in ("mean_kl", "top1_agreement", "perplexity_ratio")
    ]
    return (
        f"| {row.method} | {row.backend} | {row.engine_bytes / 2**20:.0f}"
        f" | {row.seconds:.0f} | {row.cpu_seconds:.0f} | {' | '.join(measures)}"
        f" | {row.load_seconds:.2f} | {row.tokens_per_second:.1f} |"
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = (
        "| method | backend | engine, MiB | build, s | CPU s | mean KL | top-1"
        " | perplexity ratio | load, s | tokens/s |"
    )
    return "\n".join([head, "| --- " * 2 + "| ---: " * 8 + "|", *map(line, rows)])


if __name__ == "__main__":
    raise SystemExit(main())
