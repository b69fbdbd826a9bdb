"""
Rotary position embeddings of every type that the known architectures use.

Channel pairs of a head are turned by angles that grow with the position: fast for the
first pairs, slowly for the last. What makes a model see further than it was trained
for changes the frequencies of the pairs, and sometimes the size of the result.

Shape suffixes: S samples, N heads, L tokens, H channels of a head, R channels that
turn, W pairs of them.

Source: transformers 5.23.0, modeling_rope_utils.py; RoFormer (Su et al. 2021,
arXiv:2104.09864), YaRN (Peng et al. 2023, arXiv:2309.00071), LongRoPE (Ding et al.
2024, arXiv:2402.13753).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lmi_build.decoders.rope_config import Rope


@dataclass(frozen=True, kw_only=True, slots=True)
class RotaryTables:
    """
    Cosines and sines of all positions.

    The sines that a minus sign belongs to are negated, so that turning is two products
    and one exchange of channels.

    Args:
        cos_LR: Cosines.
        sin_LR: Sines, with their signs.
        pairs: Channel 2i turns with 2i + 1, instead of i with i + R / 2.
    """

    cos_LR: Tensor
    sin_LR: Tensor
    pairs: bool


def rotary_tables(
    rope: Rope,
    *,
    num_tokens: int,
    pairs: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> RotaryTables:
    """
    Tables for positions 0 to `num_tokens` - 1.

    Angles are computed in float32 and only the tables are rounded, as transformers
    does it.

    Args:
        rope: The embedding.
        num_tokens: L; decides which factors of `longrope` and `dynamic` are used.
        pairs: Whether neighbouring channels turn together.
        dtype: Of the tables.
        device: Of the tables.
    """
    frequency_W, size = _frequencies(rope, num_tokens)
    position_L = torch.arange(num_tokens, dtype=torch.float32)
    angle_LW = position_L[:, None] * frequency_W
    cos_LW, sin_LW = angle_LW.cos() * size, angle_LW.sin() * size
    if pairs:
        cos_LR = cos_LW.repeat_interleave(2, dim=1)
        sin_LR = torch.stack((-sin_LW, sin_LW), dim=2).flatten(1)
    else:
        cos_LR = torch.cat((cos_LW, cos_LW), dim=1)
        sin_LR = torch.cat((-sin_LW, sin_LW), dim=1)
    return RotaryTables(
        cos_LR=cos_LR.to(device, dtype), sin_LR=sin_LR.to(device, dtype), pairs=pairs
    )


def rotate(x_SNLH: Tensor, tables: RotaryTables) -> Tensor:
    """Turn the first R channels of every head; the others stay."""
    width = tables.cos_LR.shape[-1]
    if width < x_SNLH.shape[-1]:
        turned = rotate(x_SNLH[..., :width], tables)
        return torch.cat((turned, x_SNLH[..., width:]), dim=-1)
    if tables.pairs:
        other = torch.unflatten(x_SNLH, -1, (-1, 2)).flip(-1).flatten(-2)
    else:
        other = torch.roll(x_SNLH, width // 2, dims=-1)
    return torch.addcmul(x_SNLH * tables.cos_LR, other, tables.sin_LR)


def _frequencies(rope: Rope, num_tokens: int) -> tuple[Tensor, float]:
    """Radians per position for each pair, and the size of the result."""
    exponent_W = torch.arange(0, rope.width, 2, dtype=torch.int64).float() / rope.width
    if rope.kind == "yarn":
        return _yarn(rope, exponent_W)
    if rope.kind == "longrope":
        return _longrope(rope, exponent_W, num_tokens)
    theta = rope.theta
    if rope.kind == "dynamic" and num_tokens > rope.positions:
        factor = float(rope.options["factor"])
        stretch = factor * num_tokens / rope.positions - (factor - 1)
        theta *= stretch ** (rope.width / (rope.width - 2))
    frequency_W = 1.0 / theta**exponent_W
    if rope.kind == "linear":
        frequency_W /= float(rope.options["factor"])
    elif rope.kind == "llama3":
        frequency_W = _llama3(rope, frequency_W)
    return frequency_W, 1.0


def _llama3(rope: Rope, frequency_W: Tensor) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    factor = float(rope.options["factor"])
    low = float(rope.options["low_freq_factor"])
    high = float(rope.options["high_freq_factor"])
    wave_W = 2 * math.pi / frequency_W
    blend_W = (rope.original_positions / wave_W - low) / (high - low)
    blended_W = (1 - blend_W) * frequency_W / factor + blend_W * frequency_W
    is_long_W = wave_W > rope.original_positions / low
    result_W = torch.where(is_long_W, frequency_W / factor, blended_W)
    is_short_W = wave_W < rope.original_positions / high
    return torch.where(is_short_W, frequency_W, result_W)


def _longrope(rope: Rope, exponent_W: Tensor, num_tokens: int) -> tuple[Tensor, float]:
    """Every pair has a factor of its own; another one for long texts."""
    options = rope.options
    is_long = num_tokens > rope.original_positions
    factors = options["long_factor" if is_long else "short_factor"]
    factor_W = torch.tensor(factors, dtype=torch.float32)
    size = options.get("attention_factor")
    if size is None:
        factor = options.get("factor") or rope.positions / rope.original_positions
        grows = math.log(factor) / math.log(rope.original_positions)
        size = math.sqrt(1 + grows) if factor > 1 else 1.0
    return 1.0 / (factor_W * rope.theta**exponent_W), float(size)


def _yarn(rope: Rope, exponent_W: Tensor) -> tuple[Tensor, float]:
    """Pairs that turn often are kept, those that turn rarely are stretched."""
    options = rope.options
    factor = float(options["factor"])
    base_W = rope.theta**exponent_W

    def pair_that_turns(times: float) -> float:
        """The pair, as a real number, that makes so many turns in training."""
        ratio = rope.original_positions / (times * 2 * math.pi)
        return rope.width * math.log(ratio) / (2 * math.log(rope.theta))

    first = pair_that_turns(float(options.get("beta_fast") or 32))
    last = pair_that_turns(float(options.get("beta_slow") or 1))
    if options.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.width - 1)
    # A ramp of no width would divide by zero.
    span = (last - first) or 0.001
    number_W = torch.arange(rope.width // 2, dtype=torch.float32)
    stretched_W = ((number_W - first) / span).clamp(0, 1)
    frequency_W = stretched_W / (factor * base_W) + (1 - stretched_W) / base_W
    return frequency_W, _yarn_size(rope, factor)


def _yarn_size(rope: Rope, factor: float) -> float:
    options = rope.options
    if options.get("attention_factor") is not None:
        return float(options["attention_factor"])

    def grown(share: float) -> float:
        return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0

    whole, all_dims = options.get("mscale"), options.get("mscale_all_dim")
    if whole and all_dims:
        return grown(float(whole)) / grown(float(all_dims))
    return grown(1.0)
