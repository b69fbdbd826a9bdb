"""
A float checkpoint as the model that NxD Inference makes of it in int8.

Every linear of a decoder block is rounded, and the head where it has a tensor of its
own; embeddings and norms stay as they are. The library loads the weights in float32
first.

Source: NxD Inference 0.1.1, `generate_quantized_state_dict` in
models/application_base.py and `prepare_quantized_state_dict` in models/model_base.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.checkpoint.formats.rounded import S8Reader
from lmi_build.checkpoint.header import TensorEntry

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_HEAD = "lm_head.weight"
_FLOAT32_BYTES = 4


class NxdiInt8Reader(S8Reader):
    """
    The tensors of a float folder with linears and head rounded to int8 and back.

    Args:
        folder: A Hugging Face folder with safetensors.

    Raises:
        SourceInvalid: `checkpoint.*`: its files are broken.
        Unsupported: `checkpoint.scheme`: the architecture's linears are not known one
            by one, or it has experts.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, amp="f32")
        head = frozenset((_HEAD,)) if _HEAD in self else frozenset()
        self._changed = frozenset(super().rounded) | head

    @property
    def rounded(self) -> tuple[str, ...]:
        """Names of the tensors that are rounded, sorted."""
        return tuple(sorted(self._changed))

    def entry(self, name: str) -> TensorEntry:
        """
        What a header would say of a tensor.

        Raises:
            SourceInvalid: `checkpoint.missing-tensor`.
        """
        entry = super().entry(name)
        if name not in self._changed:
            return entry
        size = _FLOAT32_BYTES
        for side in entry.shape:
            size *= side
        return TensorEntry(
            name=name, dtype="float32", shape=entry.shape, begin=0, end=size
        )

    def read(self, name: str) -> Tensor:
        """
        One tensor: a rounded one in float32, any other in its own dtype.

        Raises:
            SourceInvalid: It is missing or broken.
        """
        from lmi_build.numerics.qint8 import rounded_qint8

        tensor = self._reader.read(name)
        return rounded_qint8(tensor) if name in self._changed else tensor
