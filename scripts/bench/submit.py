"""
What `job submit` sends of a large local model: the first time, and unchanged.

A model folder of the wanted size is made of random shards below --scratch, and the
command runs against a server on localhost that counts the bytes of every request body.
The jobs themselves are not run: they stay in progress, and a second submit attaches.

Usage: submit.py --scratch DIR [--size 2GiB]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from lmi_build.units import format_bytes, parse_bytes
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "bench"
REGION = "us-east-1"
HIDDEN = 2048
_CASES = ("new", "unchanged", "unchanged, from an empty local store")
RECIPE = f"""\
schema: lmi-build/v1
name: large
model: {{source: ./model}}
quantize: {{method: rtn, bits: 8, group_size: 64}}
bounds: {{max_input_len: 64, max_output_len: 8, max_batch_size: 1}}
compile: {{backend: onnxruntime}}
job:
  store: s3://{BUCKET}/store
  role: arn:aws:iam::123456789012:role/jobs
  image: 123456789012.dkr.ecr.{REGION}.amazonaws.com/tools:1
"""


def make_model(folder: Path, num_bytes: int) -> int:
    """A decoder of about this size; returns the bytes of its weights."""
    inner = 4 * HIDDEN
    layer_bytes = 4 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * inner)
    num_layers = max(1, num_bytes // layer_bytes)
    make_tiny_model(
        folder,
        num_layers=1,
        hidden_size=HIDDEN,
        intermediate_size=inner,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    config = json.loads((folder / "config.json").read_bytes())
    config |= {"num_hidden_layers": num_layers, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    draw = np.random.default_rng(0)
    shapes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN,) * 2}
    shapes |= {"self_attn.v_proj": (HIDDEN,) * 2, "self_attn.o_proj": (HIDDEN,) * 2}
    shapes |= {"mlp.gate_proj": (inner, HIDDEN), "mlp.up_proj": (inner, HIDDEN)}
    shapes |= {"mlp.down_proj": (HIDDEN, inner)}
    names: dict[str, str] = {}
    total = 0
    for number in range(num_layers + 1):
        shard = f"model-{number + 1:05}-of-{num_layers + 1:05}.safetensors"
        tensors = {"model.norm.weight": np.ones(HIDDEN, np.float32)}
        if number < num_layers:
            base = f"model.layers.{number}"
            tensors = {
                f"{base}.{name}.weight": draw.standard_normal(shape, np.float32)
                for name, shape in shapes.items()
            }
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{base}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
        else:
            shape = (config["vocab_size"], HIDDEN)
            found = draw.standard_normal(shape, np.float32)
            tensors["model.embed_tokens.weight"] = found
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        names |= dict.fromkeys(tensors, shard)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


@contextmanager
def counting_server() -> Iterator[tuple[str, list[int]]]:
    """moto, and the bytes of request bodies that reached it."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    application: Any = DomainDispatcherApplication(create_backend_app)
    counted: list[int] = []

    def count(environ: dict[str, Any], start: Any) -> Any:
        # Creating the job is a body too; only what goes to the store is counted.
        if environ["PATH_INFO"].startswith(f"/{BUCKET}/store/"):
            counted.append(int(environ.get("CONTENT_LENGTH") or 0))
        if not environ.get("HTTP_X_AMZ_TARGET", "").startswith("SageMaker.Describe"):
            return application(environ, start)
        return _in_progress(application, environ, start)

    server = make_server("127.0.0.1", 0, count, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}", counted
    finally:
        server.shutdown()
        thread.join()


def _in_progress(application: Any, environ: dict[str, Any], start: Any) -> list[bytes]:
    """Moto's jobs are completed at once, without results; these go on."""
    told: list[Any] = []
    body = b"".join(application(environ, lambda *begun: told.extend(begun)))
    body = body.replace(b'"Completed"', b'"InProgress"')
    status, headers = told[:2]
    kept = [(k, v) for k, v in headers if k.lower() != "content-length"]
    start(status, [*kept, ("Content-Length", str(len(body)))])
    return [body]


def submit(root: Path, url: str, cache: str) -> tuple[dict[str, Any], float, float]:
    """Submit once; its answer, wall seconds and CPU seconds."""
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": url,
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from lmi_build.cli.main import main; main()"),
            *("--cache-dir", cache, "job", "submit", "recipe.yaml"),
            *("--output", "json"),
        ],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return json.loads(done.stdout), seconds, cpu


def main() -> None:
    """Submit three times, with a local store that is empty in the end again."""
    parser = argparse.ArgumentParser(description="bytes that `job submit` sends")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--size", type=parse_bytes, default=parse_bytes("2GiB"))
    arguments = parser.parse_args()
    root: Path = arguments.scratch
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "model" / "model.safetensors.index.json").exists():
        make_model(root / "model", arguments.size)
    size = sum(path.stat().st_size for path in (root / "model").glob("*.safetensors"))
    (root / "recipe.yaml").write_text(RECIPE)
    print(f"model {format_bytes(size)}")
    with counting_server() as (url, counted):
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id="bench",
            aws_secret_access_key="bench",  # noqa: S106 -- the server checks none
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        for number, case in enumerate(_CASES, 1):
            counted.clear()
            cache = "elsewhere" if number == len(_CASES) else "cache"
            found, seconds, cpu = submit(root, url, cache)
            print(
                f"{case}: {sum(counted):,} bytes sent to the store,"
                f" {len(counted)} requests, {seconds:.1f} s, {cpu:.1f} CPU s,"
                f" jobs {[row['how'] for row in found['jobs']]}"
            )


if __name__ == "__main__":
    main()
