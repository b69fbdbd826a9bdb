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

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_HEAD = "lm_head.weight"


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
        if _HEAD in self:
            self._changed |= {_HEAD}

    def read(self, name: str) -> Tensor:
        """
        One tensor: a rounded one in float32, any other in its own dtype.

        Raises:
            SourceInvalid: It is missing or broken.
        """
        from lmi_build.numerics.qint8 import rounded_qint8

        tensor = self._reader.read(name)
        return rounded_qint8(tensor) if name in self._changed else tensor
