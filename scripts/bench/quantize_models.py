"""
The models that `quantize.py` compares on, made from one that is at hand.

- dithered: weights that came out of a Q4_1 file lie on a grid of 16 levels in blocks
  of 32 along the input, which flatters whatever finds that grid again. Uniform noise of
  up to half a step either way, drawn once, takes it off; the result is a reference of
  its own.
- outlier: a few channels of every norm's output are scaled up by a power of two and
  the columns that read them down by the same. Every product stays what it was, bit by
  bit, but activations now have the outliers that large models have.
- random: a Llama of any size with random weights, for time and memory; with
  `--tokenizer MODEL` that model's tokenizer and as large a vocabulary (`serve.py`).

    python scripts/bench/quantize_models.py dithered|outlier MODEL OUT
    python scripts/bench/quantize_models.py random OUT --layers 12
    python scripts/bench/quantize_models.py random OUT --layers 9 --tokenizer MODEL

Legend: O output rows, I input columns, B blocks of I, D width of the model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# `make_tiny_model` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    import torch

Q4_1_BLOCK, Q4_1_LEVELS = 32, 16
# Rounding to bfloat16 moves a level by up to 2^-9 of its size; levels are up to 15
# steps from zero, and more where a block's weights all have one sign.
GRID_TOLERANCE = 0.1
# SmolLM2's own norms give channels within a factor of ten of each other; large models
# have a handful of channels 20 to 100 times as large as the rest.
OUTLIER_CHANNELS, OUTLIER_FACTOR = 6, 32.0
RANDOM_WIDTH, RANDOM_VOCABULARY = 1024, 4096
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def is_linear(name: str, weight: torch.Tensor) -> bool:
    """Whether a tensor is the weight of a linear inside a decoder block."""
    return ".layers." in name and name.endswith(".weight") and weight.dim() == 2  # noqa: PLR2004


def grid_step(weight_oi: torch.Tensor) -> torch.Tensor:
    """
    Steps (O, B) of the Q4_1 grid that a weight lies on.

    A block's file has a scale and a minimum with codes 0 to 15, both ends used, so the
    step is a fifteenth of the block's range.

    Raises:
        SystemExit: The weight lies on no such grid.
    """
    import torch

    blocks_obk = weight_oi.float().reshape(weight_oi.shape[0], -1, Q4_1_BLOCK)
    low_ob, high_ob = blocks_obk.amin(-1), blocks_obk.amax(-1)
    step_ob = (high_ob - low_ob) / (Q4_1_LEVELS - 1)
    code_obk = (blocks_obk - low_ob[..., None]) / step_ob.clamp_min(1e-30)[..., None]
    # Blocks whose levels are finer than bfloat16 can say tell nothing.
    clear_ob = step_ob > torch.maximum(low_ob.abs(), high_ob.abs()) / 64
    off_ob = (code_obk - code_obk.round()).abs().amax(-1)
    off = float(off_ob[clear_ob].quantile(0.99))
    if off > GRID_TOLERANCE:
        sys.exit(f"weights lie {off:.2f} steps beside a Q4_1 grid: nothing to dither")
    return step_ob


def dither(weight_oi: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The weight with uniform noise of at most half a step of its grid, same dtype."""
    import torch

    step_oi = grid_step(weight_oi).repeat_interleave(Q4_1_BLOCK, dim=1)
    noise_oi = torch.rand(weight_oi.shape, generator=generator) - 0.5
    return (weight_oi.float() + noise_oi * step_oi).to(weight_oi.dtype)


def dithered(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Every linear of the blocks dithered, the rest as it is.

    bfloat16 keeps the noise: it has 8 bits of mantissa where the grid has 4.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        name: dither(weight, generator) if is_linear(name, weight) else weight
        for name, weight in sorted(tensors.items())
    }


def with_outliers(
    tensors: dict[str, torch.Tensor],
    *,
    num_channels: int = OUTLIER_CHANNELS,
    factor: float = OUTLIER_FACTOR,
) -> dict[str, torch.Tensor]:
    """
    Norm outputs with outlier channels, the linears behind them undoing it exactly.

    Args:
        tensors: A model with Llama's names.
        num_channels: Channels of every norm, the same in all blocks, as outliers stay
            in their channel along the residual stream.
        factor: A power of two, so that nothing is rounded.
    """
    import torch

    result = dict(tensors)
    norms = [
        x for x in tensors if any(x.endswith(f"{norm}.weight") for norm in READERS)
    ]
    width = tensors[norms[0]].shape[0]
    chosen = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    factor_D = torch.ones(width)
    factor_D[chosen[:num_channels]] = factor
    for name in norms:
        block, norm, _ = name.rsplit(".", 2)
        result[name] = (tensors[name].float() * factor_D).to(tensors[name].dtype)
        for reader in READERS[norm]:
            weight_OD = tensors[f"{block}.{reader}.weight"]
            result[f"{block}.{reader}.weight"] = (weight_OD.float() / factor_D).to(
                weight_OD.dtype
            )
    return result


def derive(kind: str, source: Path, out: Path) -> Path:
    """Write a `dithered` or `outlier` model beside its unchanged other files."""
    from safetensors.torch import load_file, save_file

    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(source.glob("*.safetensors")):
        tensors |= load_file(shard)
    made = dithered(tensors) if kind == "dithered" else with_outliers(tensors)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and ".safetensors" not in path.name:
            shutil.copyfile(path, out / path.name)
    save_file(made, out / "model.safetensors", metadata={"format": "pt"})
    return out


def make_random(
    out: Path,
    *,
    num_layers: int,
    hidden_size: int = RANDOM_WIDTH,
    tokenizer: Path | None = None,
) -> Path:
    """
    A Llama with 16.8M random weights a block at its default width.

    Args:
        out: Folder to make anew.
        num_layers: Decoder blocks.
        hidden_size: Width of the residual stream, a multiple of a head's 64.
        tokenizer: A model whose tokenizer and vocabulary it shares; its own is small.
    """
    vocab_size = RANDOM_VOCABULARY
    if tokenizer:
        vocab_size = json.loads((tokenizer / "config.json").read_bytes())["vocab_size"]
    shutil.rmtree(out, ignore_errors=True)
    make_tiny_model(
        out,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        vocab_size=vocab_size,
        max_position_embeddings=2048,
    )
    if tokenizer:
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, out / name)
    return out


def memory_bound(num_tokens: int, *, hidden_size: int = RANDOM_WIDTH) -> float:
    """
    Bytes that quantizing a random model may hold, however deep it is.

    Four times a block, the residual stream and the widest input inside a block for all
    tokens in bfloat16, and half a gigabyte.
    """
    inner = 4 * hidden_size
    block = 2 * (4 * hidden_size**2 + 3 * hidden_size * inner)
    return 4 * block + 2 * num_tokens * (hidden_size + inner) + 0.5e9


def main() -> None:
    """Make one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    commands = parser.add_subparsers(dest="kind", required=True)
    for kind in ("dithered", "outlier"):
        command = commands.add_parser(kind)
        command.add_argument("model", type=Path)
        command.add_argument("out", type=Path)
    command = commands.add_parser("random")
    command.add_argument("out", type=Path)
    command.add_argument("--layers", type=int, default=12)
    command.add_argument("--hidden-size", type=int, default=RANDOM_WIDTH)
    command.add_argument("--tokenizer", type=Path, metavar="MODEL")
    args = parser.parse_args()
    if args.kind == "random":
        make_random(
            args.out,
            num_layers=args.layers,
            hidden_size=args.hidden_size,
            tokenizer=args.tokenizer,
        )
    else:
        derive(args.kind, args.model, args.out)


if __name__ == "__main__":
    main()
