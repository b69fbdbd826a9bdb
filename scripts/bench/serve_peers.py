"""
Peers of `serve.py`: makes their models, measures one of them, or runs its server.

Runs in each peer's own environment, so it needs nothing but that peer's packages:

    PYTHON serve_peers.py prepare openvino MODEL OUT       4 bits, groups of 64
    PYTHON serve_peers.py prepare gguf-q8 SOURCE.gguf OUT.gguf
    PYTHON serve_peers.py measure KIND PATH SETTINGS       one line of JSON
    PYTHON serve_peers.py server llama PATH SETTINGS       until it is stopped

KIND is `transformers`, `compiled`, `llama` or `openvino`; SETTINGS is JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

# A column of the table without this one's share of the machine is no column.
Found = dict[str, Any]


def main() -> int:
    """Do what the command line says."""
    action, kind, path, rest = sys.argv[1:]
    if action == "prepare":
        {"openvino": prepare_openvino, "gguf-q8": prepare_q8}[kind](
            Path(path), Path(rest)
        )
        return 0
    settings = json.loads(rest)
    if action == "server":
        serve_llama(Path(path), settings)
        return 0
    found = {
        "transformers": measure_transformers,
        "compiled": measure_transformers,
        "llama": measure_llama,
        "openvino": measure_openvino,
    }[kind](Path(path), {**settings, "compiled": kind == "compiled"})
    print(json.dumps(found))
    return 0


def measure_transformers(model: Path, settings: Found) -> Found:
    """
    Greedy decoding with a cache, eager or with a compiled step over a static one.

    The first round compiles and is not counted; a later one that would compile again is
    an error, for its time would be the compiler's.
    """
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    torch.set_num_threads(settings["threads"])
    start = time.perf_counter()
    dtype = getattr(torch, settings["dtype"])
    net = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    load = time.perf_counter() - start
    prompt = torch.tensor([settings["prompt"]])
    new, length = settings["new_tokens"], len(settings["prompt"])
    step = torch.compile(net.forward) if settings["compiled"] else net.forward
    prompts, rates, tokens, rounds = [], [], [], []
    with torch.inference_mode():
        for number in range(settings["repeats"] + 1):
            if number and settings["compiled"]:
                torch.compiler.set_stance("fail_on_recompile")
            cache = None
            if settings["compiled"]:
                cache = StaticCache(config=net.config, max_cache_len=length + new + 1)
            start = time.perf_counter()
            out = net(prompt, use_cache=True, past_key_values=cache)
            token = out.logits[:, -1:].argmax(-1)
            first = time.perf_counter()
            tokens = [int(token)]
            past = out.past_key_values
            for _ in range(new - 1):
                out = step(token, past_key_values=past, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
                tokens.append(int(token))
            prompts.append(first - start)
            rounds.append(time.perf_counter() - first)
            rates.append((new - 1) / rounds[-1])
    embedding = net.get_input_embeddings().weight
    tied = net.get_output_embeddings().weight is embedding
    size = sum(w.nbytes for w in net.parameters() if tied or w is not embedding)
    found = _found(load, prompts, rates, size, tokens)
    compiling = {"compile_s": rounds[0] - min(rounds[1:])}
    return found | (compiling if settings["compiled"] else {})


def measure_openvino(folder: Path, settings: Found) -> Found:
    """OpenVINO GenAI; its own times, without its cache of prompts seen before."""
    import numpy as np
    import openvino  # type: ignore[import-not-found, unused-ignore]
    import openvino_genai  # type: ignore[import-not-found, unused-ignore]

    start = time.perf_counter()
    pipe = openvino_genai.LLMPipeline(
        str(folder),
        "CPU",
        ATTENTION_BACKEND="SDPA",
        INFERENCE_NUM_THREADS=settings["threads"],
        **settings.get("properties", {}),
    )
    load = time.perf_counter() - start
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = settings["new_tokens"]
    config.ignore_eos, config.do_sample = True, False
    ids = np.array([settings["prompt"]], np.int64)
    inputs = openvino_genai.TokenizedInputs(
        openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
    )
    prompts, rates, tokens = [], [], []
    for _ in range(settings["repeats"] + 1):
        found = pipe.generate(inputs, config)
        prompts.append(found.perf_metrics.get_ttft().mean / 1e3)
        rates.append(1e3 / found.perf_metrics.get_tpot().mean)
        tokens = [int(token) for token in found.tokens[0]]
    size = (folder / "openvino_model.bin").stat().st_size
    return _found(load, prompts, rates, size, tokens)


def measure_llama(path: Path, settings: Found) -> Found:
    """llama.cpp through its server's own times, without its cache of prompts."""
    start = time.perf_counter()
    server = _llama(path, settings, slots=1)
    load = time.perf_counter() - start
    request = {
        "prompt": settings["prompt"],
        "n_predict": settings["new_tokens"],
        "temperature": 0.0,
        "top_k": 1,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    prompts, rates, text = [], [], ""
    for _ in range(settings["repeats"] + 1):
        found = server.handle_completions(request)
        found = json.loads(found) if isinstance(found, str) else found
        prompt, rate = llama_times(found["timings"], settings)
        prompts.append(prompt)
        rates.append(rate)
        text = found["choices"][0]["text"]
    return _found(load, prompts, rates, gguf_bytes(path), []) | {"text": text}


def llama_times(timings: Found, settings: Found) -> tuple[float, float]:
    """
    Seconds of the prompt, and tokens per second, of llama.cpp's own times.

    Its clock of the answer starts when the first token is there, yet its rate counts
    that token, too.

    Raises:
        SystemExit: It read or wrote another number of tokens than the others do.
    """
    done = timings["prompt_n"], timings["predicted_n"]
    wanted = len(settings["prompt"]), settings["new_tokens"]
    if done != wanted:
        sys.exit(f"llama.cpp read and wrote {done} tokens, not {wanted}")
    rate = (wanted[1] - 1) / timings["predicted_ms"] * 1e3
    return timings["prompt_ms"] / 1e3, rate


def serve_llama(path: Path, settings: Found) -> None:
    """Its HTTP server, until the process is stopped; the address on stdout."""
    server = _llama(path, settings, slots=settings["slots"])
    print(json.dumps({"url": server.listening_address}), flush=True)
    while sys.stdin.read(1):
        pass


def _llama(path: Path, settings: Found, *, slots: int) -> Any:
    import xllamacpp  # type: ignore[import-not-found, unused-ignore]

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = slots
    params.n_ctx = slots * settings["max_seq_len"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.warmup = True
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        params.port = free.getsockname()[1]
    return xllamacpp.Server(params)


def gguf_bytes(path: Path) -> int:
    """Bytes of the tensors that every token reads whole."""
    import gguf

    tensors = {row.name: row.n_bytes for row in gguf.GGUFReader(path).tensors}
    own_head = "output.weight" in tensors
    return int(
        sum(
            size
            for name, size in tensors.items()
            if name != "token_embd.weight" or not own_head
        )
    )


def prepare_q8(source: Path, out: Path) -> None:
    """The same model with every matrix as Q8_0, by gguf's own conversion."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = field.contents()
        if name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_Q8_0)
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub_type=inner)
    q8 = gguf.GGMLQuantizationType.Q8_0
    for row in reader.tensors:
        values = gguf.quants.dequantize(row.data, row.tensor_type)
        values = values.reshape([int(n) for n in reversed(row.shape)])
        if values.ndim > 1:
            coded = gguf.quants.quantize(values, q8)
            writer.add_tensor(row.name, coded, raw_dtype=q8)
        else:
            writer.add_tensor(row.name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prepare_openvino(model: Path, out: Path) -> None:
    """Export, and 4 bits with scales for groups of 64 by NNCF, without data."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import openvino  # type: ignore[import-not-found, unused-ignore]
    import openvino_tokenizers  # type: ignore[import-not-found, unused-ignore]
    from optimum.intel import (  # type: ignore[import-not-found, unused-ignore]
        OVModelForCausalLM,
        OVWeightQuantizationConfig,
    )
    from transformers import AutoTokenizer

    config = OVWeightQuantizationConfig(bits=4, sym=False, group_size=64, ratio=1.0)
    net = OVModelForCausalLM.from_pretrained(
        model, export=True, compile=False, quantization_config=config
    )
    net.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(out)
    pair = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, part in zip(("tokenizer", "detokenizer"), pair, strict=True):
        openvino.save_model(part, out / f"openvino_{name}.xml")


def _found(
    load: float, prompts: list[float], rates: list[float], size: int, tokens: list[int]
) -> Found:
    # The first pass warms caches and is not counted; other load only slows.
    return {
        "load_s": load,
        "prompt_ms": min(prompts[1:]) * 1e3,
        "tokens_per_s": max(rates[1:]),
        "bytes": size,
        "tokens": tokens,
    }


if __name__ == "__main__":
    sys.exit(main())
