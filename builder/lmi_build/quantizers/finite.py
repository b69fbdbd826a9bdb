"""Weights read with every number looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        if bad:
            raise _not_finite(name, bad, tensor.numel())
    return tensor


def check_finite(reader: CheckpointReader, names: Iterable[str]) -> None:
    """
    Look at every number of tensors that stay as they are, a piece at a time.

    Args:
        reader: The checkpoint.
        names: Of its tensors; those of whole numbers are passed over.

    Raises:
        SourceInvalid: `quantize.weight-not-finite`, naming the tensor and the count.
    """
    for name in names:
        entry = reader.entry(name)
        dtype = getattr(torch, entry.dtype)
        if not dtype.is_floating_point or dtype.itemsize == 1:
            continue
        bad = num_values = 0
        for piece in reader.stream(name):
            values = torch.frombuffer(bytearray(piece), dtype=dtype)
            num_values += values.numel()
            if not bool(torch.isfinite(values.sum(dtype=torch.float32))):
                bad += int((~torch.isfinite(values)).sum())
        if bad:
            raise _not_finite(name, bad, num_values)


def _not_finite(name: str, bad: int, num_values: int) -> SourceInvalid:
    return SourceInvalid(
        f"`{name}` has {bad} of {num_values} values that are NaN or infinite",
        code="quantize.weight-not-finite",
        hints=("fetch the model again, or use another revision of it",),
    )
