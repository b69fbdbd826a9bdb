"""
A Llama of a Hugging Face folder as a GGUF file, for llama.cpp beside our engines.

    python scripts/bench/write_gguf.py MODEL OUT.gguf --type q4_1 [--pre smollm]

Every matrix is rounded by the package `gguf`, the embedding to Q8_0 as in the files
that are published; norms stay float32. `--pre` is llama.cpp's name for the way the
tokenizer splits text, which `tokenizer.json` says in another form.

Legend: O output rows, I input columns.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_TYPES = ("q4_0", "q4_1", "q8_0")


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=_TYPES, default="q8_0")
    parser.add_argument("--pre", default="smollm")
    arguments = parser.parse_args()
    write(arguments.model, arguments.out, kind=arguments.type, pre=arguments.pre)


def write(model: Path, out: Path, *, kind: str, pre: str) -> Path:
    """
    The model with matrices of one type.

    Args:
        model: Folder of a Llama with a byte-level BPE tokenizer.
        out: The file.
        kind: `q4_0`, `q4_1` or `q8_0`.
        pre: llama.cpp's name of the pre-tokenizer.

    Raises:
        SystemExit: The model is no Llama, or scales its positions.
    """
    config = json.loads((model / "config.json").read_bytes())
    rope = config.get("rope_parameters") or config
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        sys.exit(f"{model}: only a llama with plain rotary positions is written")
    writer = gguf.GGUFWriter(out, "llama")
    _write_config(writer, config, float(rope["rope_theta"]), kind)
    _write_tokenizer(writer, model, config, pre)
    _write_tensors(writer, model, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _write_config(
    writer: gguf.GGUFWriter, config: dict[str, Any], theta: float, kind: str
) -> None:
    num_heads = config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(config["hidden_size"] // num_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_tokenizer(
    writer: gguf.GGUFWriter, model: Path, config: dict[str, Any], pre: str
) -> None:
    document = json.loads((model / "tokenizer.json").read_bytes())
    ids = dict(document["model"]["vocab"])
    special = {row["content"]: row["id"] for row in document["added_tokens"]}
    words = {place: word for word, place in (ids | special).items()}
    # A vocabulary may have rows that no text gives.
    places = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([words.get(place, f"[PAD{place}]") for place in places])
    kinds = gguf.TokenType
    writer.add_token_types(
        [
            kinds.UNUSED
            if place not in words
            else kinds.CONTROL
            if words[place] in special
            else kinds.NORMAL
            for place in places
        ]
    )
    merges = document["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)  # noqa: FBT003 - the package's signature


def _write_tensors(
    writer: gguf.GGUFWriter, model: Path, config: dict[str, Any], kind: str
) -> None:
    from safetensors.torch import load_file

    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for file in sorted(model.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found = names.get_name(name, try_suffixes=(".weight",))
            if found is None:
                sys.exit(f"{file}: GGUF has no name for `{name}`")
            values = tensor.float().numpy()
            if values.ndim == 1:
                writer.add_tensor(found, values)
                continue
            if head := heads.get(name.split(".")[-2]):
                values = _interleaved(values, head)
            looked_up = found == "token_embd.weight"
            coding = gguf.GGMLQuantizationType["Q8_0" if looked_up else kind.upper()]
            coded = gguf.quants.quantize(np.ascontiguousarray(values), coding)
            writer.add_tensor(found, coded, raw_dtype=coding)


def _interleaved(weight_oi: np.ndarray, heads: int) -> np.ndarray:
    """
    Rows as llama.cpp rotates them: pairs side by side, not half a head apart.

    Args:
        weight_oi: Queries or keys (O, I).
        heads: How many heads the rows have.
    """
    halves = weight_oi.reshape(heads, 2, -1, weight_oi.shape[1])
    return halves.swapaxes(1, 2).reshape(weight_oi.shape)


if __name__ == "__main__":
    main()
