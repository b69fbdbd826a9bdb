"""
Decoding speed of engines beside transformers: same prompt, same machine, same run.

Also how far each engine's logits are from those of the checkpoint it was made of,
computed in float32 from the checkpoint's exact values.

    python scripts/bench/decode.py MODEL --engine NAME=DIR=CHECKPOINT ...

Every row runs in a process of its own, so that no thread pool disturbs another.

One token needs every weight once, so memory bounds what decoding can reach. The table
says how many bytes of weights a token reads, and what share of this machine's read
bandwidth, measured in the same run, that is at the speed found. The rows looked up in
an embedding and the cache of keys and values are not counted.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import kl

if TYPE_CHECKING:
    import numpy as np

# Larger than any cache, so that memory itself is measured.
_PROBE_BYTES = 1 << 30

# Standard-library modules whose documentation is the held-out text.
_TEXT_MODULES = ("argparse", "collections", "heapq", "statistics")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; the best of the repeats: other load only slows."""

    name: str
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    weight_bytes_per_token: int
    peak_rss_bytes: int
    mean_kl: float | None
    top1_agreement: float | None


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("model", type=Path, help="the float model's folder")
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="NAME=DIR[=CHECKPOINT]",
        help="an engine, and what it is made of: MODEL unless given",
    )
    parser.add_argument("--dtype", action="append", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kl-len", type=int, default=256)
    arguments = parser.parse_args()
    token_ids = _held_out_ids(arguments.model, arguments.kl_len)
    settings = {
        "prompt": [token for row in token_ids for token in row][: arguments.prompt_len],
        "new_tokens": arguments.new_tokens,
        "repeats": arguments.repeats,
        "threads": arguments.threads,
    }
    probes = [_isolated(_memory_bandwidth, arguments.threads)]
    rows = [
        _isolated(_measure_transformers, arguments.model, dtype, settings)
        for dtype in arguments.dtype or ("bfloat16", "float32")
    ]
    for engine in arguments.engine:
        name, folder, *checkpoint = engine.split("=")
        source = Path(checkpoint[0]) if checkpoint else arguments.model
        reference = _isolated(_reference_logits, source, token_ids)
        rows.append(
            _isolated(
                _measure_engine, name, Path(folder), settings, token_ids, reference
            )
        )
    # Before and after: a machine's neighbours come and go.
    probes.append(_isolated(_memory_bandwidth, arguments.threads))
    read, copied = map(max, zip(*probes, strict=True))
    print(
        f"{arguments.threads} threads, prompt {arguments.prompt_len}, then"
        f" {arguments.new_tokens} tokens, best of {arguments.repeats};"
        f" memory reads {read / 1e9:.1f} GB/s, copies {copied / 1e9:.1f} GB/s"
        f" (read and written bytes); load {os.getloadavg()[0]:.1f}"
    )
    print(_table(rows, read))


def _memory_bandwidth(threads: int) -> tuple[float, float]:
    """Bytes per second of reading, and of copying with both sides counted."""
    import torch

    torch.set_num_threads(threads)
    source = torch.ones(_PROBE_BYTES // 4)
    target = torch.empty_like(source)
    reads, copies = [], []
    for _ in range(6):
        start = time.perf_counter()
        target.copy_(source)
        middle = time.perf_counter()
        # Fastest reader of those tried; `sum` is bound by its additions.
        torch.dot(source, source)
        end = time.perf_counter()
        copies.append(2 * _PROBE_BYTES / (middle - start))
        reads.append(_PROBE_BYTES / (end - middle))
    return max(reads), max(copies)


def _isolated(function: Any, *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _held_out_ids(model: Path, length: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    rows = []
    for name in _TEXT_MODULES:
        text = inspect.getsource(__import__(name))
        rows.append(tokenizer.encode(text).ids[:length])
    return rows


def _reference_logits(
    checkpoint: Path, rows: list[list[int]]
) -> list[np.ndarray[Any, Any]]:
    import torch

    model = kl.load_checkpoint(checkpoint)
    with torch.inference_mode():
        return [model(torch.tensor([row])).logits[0].numpy() for row in rows]


def _measure_transformers(model: Path, dtype: str, settings: dict[str, Any]) -> Row:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(settings["threads"])
    net = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    net.eval()
    prompt = torch.tensor([settings["prompt"]])
    prefill, decode = [], []
    with torch.inference_mode():
        for _ in range(settings["repeats"] + 1):
            start = time.perf_counter()
            out = net(prompt, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            first = time.perf_counter()
            for _ in range(settings["new_tokens"]):
                out = net(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            end = time.perf_counter()
            prefill.append(prompt.shape[1] / (first - start))
            decode.append(settings["new_tokens"] / (end - first))
    # A tied head is the embedding; an untied embedding is read one row a token.
    embedding = net.get_input_embeddings().weight
    tied = net.get_output_embeddings().weight is embedding
    num_bytes = sum(
        weight.nbytes for weight in net.parameters() if tied or weight is not embedding
    )
    return _row(f"transformers {dtype}", num_bytes, prefill, decode, None, None)


def _engine_bytes(folder: Path) -> int:
    """Bytes of an engine's weights that are not only looked up row by row."""
    import math

    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    whole = {
        name
        for node in graph.node
        if node.op_type not in {"Gather", "GatherBlockQuantized"}
        for name in node.input
    }
    return sum(
        math.prod(tensor.dims)
        * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
        if tensor.name in whole
    )


def _measure_engine(
    name: str,
    folder: Path,
    settings: dict[str, Any],
    token_ids: list[list[int]],
    reference: list[np.ndarray[Any, Any]],
) -> Row:
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    threads = {"intra_op_num_threads": settings["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
    model = og.Model(config)
    length = len(settings["prompt"]) + settings["new_tokens"] + 1
    prefill, decode = [], []
    for _ in range(settings["repeats"] + 1):
        params = og.GeneratorParams(model)
        # No end of sequence: every row decodes the same number of tokens.
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(np.array([settings["prompt"]], np.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(settings["new_tokens"]):
            generator.generate_next_token()
        end = time.perf_counter()
        prefill.append(len(settings["prompt"]) / (first - start))
        decode.append(settings["new_tokens"] / (end - first))
    divergences, agreements = [], []
    for row, expected in zip(token_ids, reference, strict=True):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(row) + 1)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array([row], np.int32))
        logits = np.asarray(generator.get_output("logits"))[0]
        divergences.append(_kl(expected, logits))
        agreements.append((expected.argmax(-1) == logits.argmax(-1)).mean())
    return _row(
        name,
        _engine_bytes(folder),
        prefill,
        decode,
        float(np.mean(divergences)),
        float(np.mean(agreements)),
    )


def _kl(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    import numpy as np

    def log_softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
        total: np.ndarray[Any, Any] = shifted - np.log(
            np.exp(shifted).sum(-1, keepdims=True)
        )
        return total

    p, q = log_softmax(expected), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _row(
    name: str,
    weight_bytes: int,
    prefill: list[float],
    decode: list[float],
    mean_kl: float | None,
    top1: float | None,
) -> Row:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # The first pass warms caches and is not counted.
    return Row(
        name=name,
        prefill_tokens_per_second=max(prefill[1:]),
        decode_tokens_per_second=max(decode[1:]),
        weight_bytes_per_token=weight_bytes,
        peak_rss_bytes=peak,
        mean_kl=mean_kl,
        top1_agreement=top1,
    )


def _table(rows: list[Row], read_bandwidth: float) -> str:
    best = max(
        row.decode_tokens_per_second for row in rows if row.name.startswith("trans")
    )
    lines = [
        (
            "| engine | prefill tok/s | decode tok/s | x best transformers"
            " | MiB a token | of read bandwidth | added KL | top-1 | peak RSS MiB |"
        ),
        "| --- " + "| ---: " * 8 + "|",
    ]
    for row in rows:
        kl = "-" if row.mean_kl is None else f"{row.mean_kl:.2e}"
        rate = row.decode_tokens_per_second * row.weight_bytes_per_token
        share = rate / read_bandwidth
        top1 = "-" if row.top1_agreement is None else f"{row.top1_agreement:.4f}"
        lines.append(
            f"| {row.name} | {row.prefill_tokens_per_second:.0f}"
            f" | {row.decode_tokens_per_second:.1f}"
            f" | {row.decode_tokens_per_second / best:.2f}"
            f" | {row.weight_bytes_per_token / 2**20:.1f} | {share:.0%} | {kl} | {top1}"
            f" | {row.peak_rss_bytes / 2**20:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
