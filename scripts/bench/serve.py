"""
Decoding and serving beside peers: same prompt, same machine, same run.

    scripts/bench/serve.py MODEL --ours onnxruntime-int4=ARTIFACT[=CHECKPOINT] ...
        --peer llama=PYTHON --gguf q8=FILE --peer openvino=PYTHON --openvino int4=DIR

Each row runs in a process of its own, peers in environments of their own
(`serve_peers.py`, which makes their models too). One sequence on `--threads` threads:
seconds to load, milliseconds of the prompt, tokens per second, bytes of weights that a
token reads, and what share of this machine's copy bandwidth that is. Then tokens per
second of 1, 4 and more requests at once over HTTP. With `--checks` also how far an
engine's logits are from the checkpoint it was made of, computed in float32.

Goals are told by name: rows of ours whose names begin with `onnxruntime-int4`,
`aotinductor-int4` and so on. Rows are kept in `--rows FILE`, so that a run can be made
in pieces; `--table` prints what is there.
"""

# The parts measured are private to their modules: this is their bench.
# ruff: noqa: SLF001

from __future__ import annotations

import argparse
import http.client
import importlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import decode, kl
from bench.serve_peers import _found

_PEERS = Path(__file__).with_name("serve_peers.py")
_GREEDY = 64
# Of the largest logit: what the engine itself may add, by what its name says.
_FIDELITY = {"float": 1e-4, "int4": 1e-3, "int8": 1e-3}
_ENDING = 20
Row = dict[str, Any]


def main() -> int:
    """Measure what the command line names, and print the table."""
    arguments = _parser().parse_args()
    if arguments.one:
        print(json.dumps(measure_ours(arguments.one, json.loads(arguments.settings))))
        return 0
    rows: dict[str, Row] = {}
    if arguments.rows and arguments.rows.exists():
        rows = json.loads(arguments.rows.read_text())
    if not arguments.table:
        ids = [t for row in decode._held_out_ids(arguments.model, 256) for t in row]
        settings = {
            "threads": arguments.threads,
            "prompt": ids[: arguments.prompt_len],
            "new_tokens": arguments.new_tokens,
            "repeats": arguments.repeats,
            "max_seq_len": 1024,
        }
        for row in measure_all(arguments, settings):
            rows[row["name"]] = {**rows.get(row["name"], {}), **row}
            if arguments.rows:
                arguments.rows.write_text(json.dumps(rows, indent=1))
            print(f"{row['name']}: {_brief(row)}", file=sys.stderr, flush=True)
    print_table(list(rows.values()), arguments.at_once)
    print_goals(list(rows.values()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="the float model's folder")
    for name, value in (
        ("ours", "NAME=ARTIFACT[=CHECKPOINT]"),
        ("gguf", "NAME=FILE"),
        ("openvino", "NAME=DIR"),
        ("peer", "llama|openvino|transformers=PYTHON"),
    ):
        parser.add_argument(f"--{name}", action="append", default=[], metavar=value)
    parser.add_argument("--dtype", action="append", default=[], help="transformers'")
    parser.add_argument(
        "--compiled",
        action="append",
        default=[],
        metavar="DTYPE",
        help="transformers' with torch.compile's step and a static cache",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at-once", type=_whole_numbers, default=[1, 4])
    parser.add_argument("--no-http", action="store_true")
    parser.add_argument("--checks", action="store_true", help="fidelity too; slower")
    parser.add_argument("--rows", type=Path, help="where rows are kept")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    return parser


def _whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def measure_all(arguments: argparse.Namespace, settings: Row) -> Any:
    """Row after row."""
    pythons = dict(row.split("=", 1) for row in arguments.peer)
    read, copied = decode._isolated(decode._memory_bandwidth, arguments.threads)
    machine = {"read": read, "copied": copied}

    def peer(name: str, kind: str, python: str, path: Path, **more: Any) -> Row:
        words = [python, _PEERS, "measure", kind, path, json.dumps(settings | more)]
        return _row(name, words, machine)

    here = pythons.get("transformers", sys.executable)
    for kind, dtypes in (
        ("transformers", arguments.dtype),
        ("compiled", arguments.compiled),
    ):
        for dtype in dtypes:
            name = f"transformers {dtype}{', compiled' * (kind == 'compiled')}"
            yield peer(name, kind, here, arguments.model, dtype=dtype)
    at_once = [] if arguments.no_http else arguments.at_once
    for text in arguments.ours:
        name, folder, *checkpoint = text.split("=")
        words = [sys.executable, __file__, arguments.model, "--one", folder]
        more = {"checkpoint": checkpoint[0] if checkpoint else str(arguments.model)}
        more |= {"checks": arguments.checks}
        row = _row(name, [*words, "--settings", json.dumps(settings | more)], machine)
        command = Path(sys.executable).with_name("lmi-build")
        serve = [str(command), "serve", folder, "--port", "0"]
        # A bare folder is no artifact, so nothing serves it.
        served = at_once if Path(folder, "manifest.json").exists() else []
        rates = throughput(serve, arguments, served, llama=False)
        yield {**row, "ours": True, **rates}
    for text in arguments.gguf:
        name, file = text.split("=")
        row = peer(f"llama.cpp {name}", "llama", pythons["llama"], Path(file))
        slots = {"slots": max(at_once, default=1)}
        serve = [pythons["llama"], str(_PEERS), "server", "llama", file]
        serve += [json.dumps(settings | slots)]
        yield {**row, **throughput(serve, arguments, at_once, llama=True)}
    for text in arguments.openvino:
        name, folder = text.split("=")
        python = pythons["openvino"]
        yield peer(f"OpenVINO {name}", "openvino", python, Path(folder))


def _row(name: str, words: list[Any], machine: Row) -> Row:
    threads = json.loads(words[-1])["threads"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        error = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"name": name, "error": error[0][:160]}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {"name": name, **machine, **found, "load": os.getloadavg()[0]}


def measure_ours(folder: Path, settings: Row) -> Row:
    """An artifact's own handler in this process, as `serve` loads it."""
    # Imports are no part of loading, here as in the peers.
    importlib.import_module("tokenizers")
    importlib.import_module("onnxruntime" if _is_graph(folder) else "torch")
    start = time.perf_counter()
    engine = _load(folder)
    load = time.perf_counter() - start
    # Every row decodes the same number of tokens.
    ends, engine._eos_token_ids = engine._eos_token_ids, frozenset()
    new = min(settings["new_tokens"], engine.bounds["max_output_len"])
    prompts, rates, tokens = [], [], []
    for _ in range(settings["repeats"] + 1):
        start = time.perf_counter()
        stream = engine.stream(settings["prompt"], {"max_new_tokens": new})
        tokens = [next(stream).token_id]
        first = time.perf_counter()
        tokens += [step.token_id for step in stream]
        prompts.append(first - start)
        rates.append((new - 1) / (time.perf_counter() - first))
    found = _found(load, prompts, rates, _bytes(folder), tokens)
    engine._eos_token_ids = ends
    # The page cache has the files: what is left is what loading itself costs.
    files = [path for path in (folder / "engine").iterdir() if path.is_file()]
    start = time.perf_counter()
    for path in files:
        path.read_bytes()
    found["read_s"] = time.perf_counter() - start
    if settings["checks"]:
        found |= check(engine, Path(settings["checkpoint"]), settings["prompt"])
    return found


def _load(folder: Path) -> Any:
    """An artifact's engine; of a bare folder, that of the handler installed here."""
    if (folder / "manifest.json").exists():
        from lmi_build.package.engine import load_engine
        from lmi_build.verify.integrity import read_manifest

        return load_engine(folder, read_manifest(folder)).engine
    name = "onnxruntime_genai" if _is_graph(folder) else "aotinductor"
    module = importlib.import_module(f"lmi_build.package.handlers.{name}")
    return module.Engine(folder)


def _is_graph(folder: Path) -> bool:
    return (folder / "engine" / "model.onnx").exists()


def _bytes(folder: Path) -> int:
    """Bytes of weights that a token reads."""
    if _is_graph(folder):
        return decode._engine_bytes(folder / "engine")
    from bench.aotinductor import read_sizes

    return sum(read_sizes(folder / "engine" / "weights.safetensors"))


def check(engine: Any, checkpoint: Path, prompt: list[int]) -> Row:
    """How far the logits are from the checkpoint's in float32, and greedy tokens."""
    import numpy as np
    import torch

    net = kl.load_checkpoint(checkpoint)
    ids = prompt[: min(len(prompt), engine.bounds["max_input_len"])]
    new = min(_GREEDY, engine.bounds["max_output_len"])
    with torch.inference_mode():
        wanted = net(torch.tensor([ids])).logits[0].numpy()
        out = net(torch.tensor([ids]), use_cache=True)
        text = [int(out.logits[0, -1].argmax())]
        while len(text) < new:
            more = torch.tensor([text[-1:]])
            out = net(more, past_key_values=out.past_key_values, use_cache=True)
            text.append(int(out.logits[0, -1].argmax()))
    found = engine.logits(ids)
    engine._eos_token_ids = frozenset()
    steps = [s.token_id for s in engine.stream(ids, {"max_new_tokens": new})]
    same = next(
        (
            n
            for n, pair in enumerate(zip(steps, text, strict=True))
            if pair[0] != pair[1]
        ),
        new,
    )
    # How far a batch is from a request alone, for what sampling may see of it.
    slots = getattr(engine, "slots", None) or engine.session
    apart = 0.0
    if slots.num_slots > 1:
        alone = _last(slots, 0, ids), slots.step({0: steps[0]})[0].copy()
        _last(slots, 0, ids), _last(slots, 1, ids[: len(ids) // 2])
        both = slots.step({0: steps[0], 1: steps[1]})[0]
        apart = float(np.abs(both - alone[1]).max() / np.abs(alone[1]).max())
    return {
        "relative_error": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
        "greedy_same": same,
        "greedy_of": new,
        "batch_apart": apart,
    }


def _last(slots: Any, slot: int, ids: list[int]) -> Any:
    *_, logits = slots.read(slot, ids)
    return logits


def throughput(
    words: list[str], arguments: argparse.Namespace, at_once: list[int], *, llama: bool
) -> Row:
    """Tokens per second of several requests at once, from a server over HTTP."""
    if not at_once:
        return {}
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        if process.stdout is None or not (line := process.stdout.readline()):
            return {"http": {}, "http_error": f"exit status {process.wait()}"}
        port = urlsplit(json.loads(line)["url"]).port or 0
        prompts = _prompts(arguments.model, arguments.prompt_len, max(at_once))
        ask = _ask_llama if llama else _ask_ours
        new = arguments.new_tokens
        ask(port, prompts[0], new)
        rates = {}
        for num in at_once:
            best = 0.0
            for _ in range(max(1, arguments.repeats - 1)):
                start = time.perf_counter()
                with ThreadPoolExecutor(num) as pool:
                    counts = pool.map(lambda p: ask(port, p, new), prompts[:num])
                    tokens = sum(counts)
                best = max(best, tokens / (time.perf_counter() - start))
            rates[str(num)] = best
        return {"http": rates}
    finally:
        process.terminate()
        try:
            process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _prompts(model: Path, length: int, count: int) -> list[str]:
    """Different texts of about so many tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = [t for row in decode._held_out_ids(model, 4096) for t in row]
    starts = [64 + n * length for n in range(count)]
    return [str(tokenizer.decode(ids[s : s + length - 8])) for s in starts]


def _post(port: int, path: str, document: Row) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    kind = {"content-type": "application/json"}
    connection.request("POST", path, json.dumps(document), kind)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != 200:  # noqa: PLR2004 - HTTP
        sys.exit(f"status {response.status}: {body[:200]!r}")
    return json.loads(body)


def _ask_ours(port: int, prompt: str, new: int) -> int:
    parameters = {"max_new_tokens": new, "details": True}
    body = {"inputs": prompt, "parameters": parameters}
    return int(_post(port, "/invocations", body)["details"]["generated_tokens"])


def _ask_llama(port: int, prompt: str, new: int) -> int:
    body = {"prompt": prompt, "n_predict": new, "temperature": 0.0}
    body |= {"cache_prompt": False, "ignore_eos": True}
    return int(_post(port, "/completion", body)["tokens_predicted"])


def _brief(row: Row) -> str:
    if "error" in row or "http_error" in row:
        return f"failed: {row.get('error') or row['http_error']}"
    compiling = ""
    if "compile_s" in row:
        compiling = f" after {row['compile_s']:.0f} s to compile"
    served = ", ".join(f"{n}: {rate:.1f}" for n, rate in row.get("http", {}).items())
    return f"{row['tokens_per_s']:.1f} tokens/s{compiling}; served {served or 'no'}"


def print_table(rows: list[Row], at_once: list[int]) -> None:
    """A Markdown table."""
    best = _best(rows, "transformers")
    served = [f"served, {num} at once" for num in at_once]
    heads = ["engine", "load s", "prompt ms", "tokens/s", "x transformers"]
    heads += ["MB a token", "of copy", *served, "relative error", "greedy", "load"]
    print(f"| {' | '.join(heads)} |\n| --- {'| ---: ' * (len(heads) - 1)}|")
    for row in rows:
        if "error" in row:
            print(f"| {row['name']} | {row['error']} {'| ' * (len(heads) - 2)}|")
            continue
        rate = row["tokens_per_s"]
        http_rates = [row.get("http", {}).get(str(num)) for num in at_once]
        error = row.get("relative_error")
        same = row.get("greedy_same")
        cells = [
            row["name"],
            f"{row['load_s']:.2f}",
            f"{row['prompt_ms']:.0f}",
            f"{rate:.1f}",
            f"{rate / best:.1f}" if best else "",
            f"{row['bytes'] / 1e6:.0f}",
            # A copy counts what it reads.
            f"{rate * row['bytes'] / (row['copied'] / 2):.0%}",
            *(f"{value:.1f}" if value else "" for value in http_rates),
            "" if error is None else f"{error:.1e}",
            "" if same is None else f"{same}/{row['greedy_of']}",
            f"{row['load']:.1f}",
        ]
        print(f"| {' | '.join(cells)} |")


def print_goals(rows: list[Row]) -> None:
    """What is to be reached, met or missed, where the rows for it are there."""
    best = _best(rows, "transformers")
    for ours, factor in (("onnxruntime-int4", 7.0), ("aotinductor-int4", 3.0)):
        if best and (rate := _best(rows, ours)):
            _goal(f"{ours} over transformers", rate / best, factor, "x")
    for peer in ("llama.cpp", "OpenVINO"):
        for ours in ("onnxruntime-int4",):
            if (rate := _best(rows, ours)) and (other := _best(rows, peer)):
                _goal(f"{ours} over {peer}", rate / other, 1.0, "x")
    for row in rows:
        if not row.get("ours") or "error" in row:
            continue
        limit = 2.0 + row["read_s"]
        _goal(f"{row['name']} loads", row["load_s"], limit, " s", least=False)
        kind = next((k for k in _FIDELITY if k in row["name"]), None)
        if kind and "relative_error" in row:
            error = row["relative_error"]
            _goal(f"{row['name']} error", error, _FIDELITY[kind], "", least=False)
            if kind == "float":
                same = row["greedy_same"] / row["greedy_of"]
                _goal(f"{row['name']} greedy tokens", same, 1.0, "")


def _goal(
    what: str, found: float, limit: float, unit: str, *, least: bool = True
) -> None:
    met = found >= limit if least else found <= limit
    sign = ">=" if least else "<="
    print(
        f"{'met   ' if met else 'MISSED'} {what}: {found:.3g}{unit} {sign} {limit:.3g}"
    )


def _best(rows: list[Row], prefix: str) -> float:
    rates = [
        r["tokens_per_s"]
        for r in rows
        if r["name"].startswith(prefix) and "error" not in r
    ]
    return max(rates, default=0.0)


if __name__ == "__main__":
    sys.exit(main())
