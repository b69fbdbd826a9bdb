"""Weights read with every number looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from lmi_build.checkpoint.reader import CheckpointReader


def read_finite(reader: CheckpointReader, name: str) -> Tensor:
    """
    One tensor, all of its numbers finite.

    Raises:
        SourceInvalid: `quantize.weight-not-finite`, naming the tensor and the count.
    """
    tensor = reader.read(name)
    # One number that is not finite makes the sum so; a sum can also just be too large.
    wide = tensor.dtype.itemsize > 1
    if not (wide and bool(torch.isfinite(tensor.sum(dtype=torch.float32)))):
        bad = int((~torch.isfinite(tensor)).sum())
        if not bad:
            return tensor
        raise SourceInvalid(
            f"`{name}` has {bad} of {tensor.numel()} values that are NaN or infinite",
            code="quantize.weight-not-finite",
            hints=("fetch the model again, or use another revision of it",),
        )
    return tensor
