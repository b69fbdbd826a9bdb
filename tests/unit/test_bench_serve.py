"""The models that `scripts/bench/serve.py` compares engines on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from bench import quantize_models, serve, serve_peers, write_gguf
from lmi_build.sources.gguf_convert import convert_gguf
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

# Of the largest weight of a block of 32: half a step, and the scale's own rounding.
ROUNDING = {"q8_0": 1.1 * 0.5 / 127, "q4_1": 1.1 * 0.5 * 2 / 15}


@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
def test_gguf_is_the_same_model(tmp_path: Path, kind: str) -> None:
    """Read back by our importer: names, places of rows, configuration and tokens."""
    model = make_tiny_model(tmp_path / "model")
    file = write_gguf.write(model, tmp_path / "model.gguf", kind=kind, pre="gpt-2")
    out = tmp_path / "back"
    out.mkdir()

    convert_gguf(file, out, dtype="float32", progress=lambda *_: None)

    back = load_file(out / "model.safetensors")
    wanted = load_file(model / "model.safetensors")
    assert back.keys() == wanted.keys()
    for name, weight in wanted.items():
        if weight.dim() == 1:
            assert torch.equal(back[name], weight.float()), name
            continue
        blocks = weight.float().reshape(-1, 32)
        apart = (back[name].reshape(-1, 32) - blocks).abs()
        looked_up = name == "model.embed_tokens.weight"
        share = ROUNDING["q8_0" if looked_up else kind]
        assert bool((apart <= share * blocks.abs().amax(-1, keepdim=True)).all()), name
    configs = [json.loads((d / "config.json").read_bytes()) for d in (model, out)]
    for key in ("hidden_size", "num_key_value_heads", "rms_norm_eps", "vocab_size"):
        assert configs[1][key] == pytest.approx(configs[0][key]), key
    text = "The capital of France is Paris; 12 stages, caf\u00e9."
    tokenizers = [Tokenizer.from_file(str(d / "tokenizer.json")) for d in (model, out)]
    assert tokenizers[0].encode(text).ids == tokenizers[1].encode(text).ids


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """Biases of Qwen 2 have no place in a llama's file."""
    model = make_tiny_model(tmp_path / "model", architecture="qwen2")

    with pytest.raises(SystemExit, match="only a llama"):
        write_gguf.write(model, tmp_path / "model.gguf", kind="q8_0", pre="gpt-2")


def test_random_model_takes_a_tokenizer(tmp_path: Path) -> None:
    """Its vocabulary is that of the model whose tokenizer it has."""
    source = make_tiny_model(tmp_path / "source", vocab_size=600)

    out = quantize_models.make_random(
        tmp_path / "random", num_layers=1, hidden_size=64, tokenizer=source
    )

    assert load_file(out / "model.safetensors")["model.embed_tokens.weight"].shape == (
        600,
        64,
    )
    for name in quantize_models.TOKENIZER_FILES:
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_a_row_says_what_failed_or_was_measured() -> None:
    """Compiling is told beside the rate, and an error instead of one."""
    row = {"tokens_per_s": 20.0, "http": {"1": 7.5}}

    assert serve._brief(row) == "20.0 tokens/s; served 1: 7.5"
    assert serve._brief({"tokens_per_s": 20.0, "compile_s": 61.0}).startswith(
        "20.0 tokens/s after 61 s to compile"
    )
    assert serve._brief({"error": "no file"}) == "failed: no file"


def test_eager_decoding_is_what_generate_gives(tmp_path: Path) -> None:
    """The loop that times transformers makes transformers' own greedy tokens."""
    from transformers import AutoModelForCausalLM

    model = make_tiny_model(tmp_path / "model")
    prompt = [5, 17, 300, 42]
    settings = {"threads": 1, "prompt": prompt, "new_tokens": 6, "repeats": 1}

    found = serve_peers.measure_transformers(
        model, {**settings, "dtype": "float32", "compiled": False}
    )

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    out = net.generate(
        torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    assert found["tokens"] == out[0, len(prompt) :].tolist()
    assert found["bytes"] == sum(w.nbytes for w in net.parameters())


def test_the_first_token_belongs_to_the_prompt() -> None:
    """As for the others: 5 steps in a second are 5 tokens per second, not 6."""
    timings = {"prompt_n": 8, "prompt_ms": 250.0, "predicted_n": 6, "cache_n": 0}
    settings = {"prompt": list(range(8)), "new_tokens": 6}

    found = serve_peers.llama_times({**timings, "predicted_ms": 1000.0}, settings)

    assert found == (0.25, 5.0)
    # A prompt that was there already, or an early end, is no comparison.
    with pytest.raises(SystemExit, match=r"\(8, 6\) tokens, not \(9, 6\)"):
        serve_peers.llama_times(timings, {**settings, "prompt": list(range(9))})
