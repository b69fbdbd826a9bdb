"""
A quantized linear out of any format: codes, scales and zero points.

Shape suffixes: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Signed 8-bit numbers on disk are unsigned codes less this.
INT8_MIDDLE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Codes:
    """
    One linear, out of any format.

    Args:
        code_IO: uint8 codes, or float8_e4m3fn values.
        scale_GO: float32 scales; G is 1 where a row or the whole matrix shares one.
        zero_GO: uint8 zero points; 0 for float8.
        group_I: int32 group of each input channel, or None where channel i is in
            group `i // (I / G)`.
    """

    code_IO: Tensor
    scale_GO: Tensor
    zero_GO: Tensor
    group_I: Tensor | None = None


def weight_of(codes: Codes) -> Tensor:
    """What codes mean: float32 weights [O, I]."""
    num_inputs, num_groups = codes.code_IO.shape[0], codes.scale_GO.shape[0]
    group_I = codes.group_I
    if group_I is None:
        group_I = torch.arange(num_inputs) // (num_inputs // num_groups)
    group_I = group_I.to(torch.int64)
    zero_IO = codes.zero_GO.to(torch.float32)[group_I]
    w_IO = (codes.code_IO.to(torch.float32) - zero_IO) * codes.scale_GO[group_I]
    return w_IO.T.contiguous()
