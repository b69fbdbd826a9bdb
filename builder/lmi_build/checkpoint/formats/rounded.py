"""
A float checkpoint as the model that Transformers NeuronX makes of it in int8.

Every linear of a decoder block is rounded; embeddings, norms, routers and the head stay
as they are. The library first takes the weights to its own float type.

Source: transformers-neuronx 0.9 to 0.13, `decoder.py` `DecoderLayer.to_neuron` and each
`*/model.py` `load_weights`; `no_quantize_list` is empty where LMI makes the call.
"""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.architectures import architectures
from lmi_build.checkpoint.header import TensorEntry
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor
    from typing_extensions import Self

# Float types by the names of Transformers NeuronX.
AMPS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_FLOAT32_BYTES = 4


class S8Reader:
    """
    The tensors of a float folder with its blocks' linears rounded to int8 and back.

    Args:
        folder: A Hugging Face folder with safetensors.
        amp: Float type that the library loads weights in: a name of `AMPS`.

    Raises:
        SourceInvalid: `checkpoint.*`: its files are broken.
        Unsupported: `checkpoint.scheme`: the architecture's linears are not known one
            by one, or it has experts, whose scales the library takes along the other
            dimension.
    """

    def __init__(self, folder: Path, *, amp: str) -> None:
        self._dtype = AMPS[amp]
        self._reader = CheckpointReader(folder)
        config = json.loads((folder / "config.json").read_bytes())
        self._changed, self._transposed = _linears(config, self._reader.tensors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    @property
    def rounded(self) -> tuple[str, ...]:
        """Names of the tensors that are rounded, sorted."""
        return tuple(sorted(self._changed))

    def __contains__(self, name: str) -> bool:
        return name in self._reader

    def entry(self, name: str) -> TensorEntry:
        """
        What a header would say of a tensor.

        Raises:
            SourceInvalid: `checkpoint.missing-tensor`.
        """
        entry = self._reader.entry(name)
        if name not in self._changed:
            return entry
        size = _FLOAT32_BYTES * prod(entry.shape)
        return TensorEntry(
            name=name, dtype="float32", shape=entry.shape, begin=0, end=size
        )

    def read(self, name: str) -> Tensor:
        """
        One tensor: a rounded linear in float32, any other in its own dtype.

        Raises:
            SourceInvalid: It is missing or broken.
        """
        import torch

        from lmi_build.numerics.s8 import rounded_s8

        tensor = self._reader.read(name)
        if name not in self._changed:
            return tensor
        tensor = tensor.to(getattr(torch, self._dtype))
        if self._transposed:
            return rounded_s8(tensor.T).T.contiguous()
        return rounded_s8(tensor)


def _linears(
    config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> tuple[frozenset[str], bool]:
    """Weights of every block's linears, and whether they are stored as [I, O]."""
    name = str((config.get("architectures") or [""])[0])
    row = architectures().get(name)
    if row is None or row.experts:
        what = "has experts" if row is not None else "is not known"
        raise Unsupported(
            f"what int8 costs `{name}` cannot be computed: the architecture {what}",
            code="checkpoint.scheme",
            hints=("measure it on the device",),
        )
    located = row.locate(tensors)
    found: set[str] = set()
    index = 0
    while linears := located.linears(tensors, index):
        found |= {f"{located.block(index)}.{linear}.weight" for linear in linears}
        index += 1
    return frozenset(found), row.transposed
