"""
A quantized checkpoint as the float model that its numbers mean.

Every weight is `(code - zero) * scale` in float32, which holds the product exactly:
codes have at most 8 bits, scales at most 24. It is what an engine of a model that came
quantized is compared with, since there is no other model to compare it with.

Shape suffixes: I input channels, O output channels.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.architectures import architectures
from lmi_build.checkpoint.formats.config import LM_HEAD
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.formats.headers import linears_in, parts_of
from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS
from lmi_build.checkpoint.formats.modelopt import HF_QUANT_CONFIG
from lmi_build.checkpoint.header import TensorEntry
from lmi_build.checkpoint.ledger import LEDGER_NAME
from lmi_build.checkpoint.reader import INDEX_NAME, CheckpointReader, byte_view
from lmi_build.checkpoint.writer import TensorPlan, write_checkpoint
from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor
    from typing_extensions import Self

    from lmi_build.checkpoint.formats.headers import QuantizedLinear

QUANTIZATION = "quantization_config"
# What says that weights are packed, in folders whose weights no longer are.
_STALE = frozenset(
    {HF_QUANT_CONFIG, "quantize_config.json", "quant_config.json", LEDGER_NAME}
)


def is_quantized(model: Path) -> bool:
    """Whether a folder's `config.json` says that its weights are packed."""
    return bool(_config(model).get(QUANTIZATION))


def float_config(model: Path) -> dict[str, Any]:
    """`config.json` of the float model."""
    return {k: v for k, v in _config(model).items() if k != QUANTIZATION}


def _config(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            f"`{path}` cannot be read: {error}",
            code="checkpoint.format",
            hints=("fetch the checkpoint again",),
        ) from error
    return document if isinstance(document, dict) else {}


class DequantizedReader:
    """
    The float tensors of a quantized folder, read as `CheckpointReader` reads others.

    Args:
        folder: A Hugging Face folder in a format that `read_scheme` knows.

    Raises:
        SourceInvalid: `checkpoint.*`: its files are broken or do not fit together.
        Unsupported: `checkpoint.scheme`: no decoder for it is here.
    """

    def __init__(self, folder: Path) -> None:
        config = _config(folder)
        self._scheme = read_scheme(config.get(QUANTIZATION) or {})
        self._reader = CheckpointReader(folder)
        entries = self._reader.tensors
        shapes = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
        try:
            linears = linears_in(shapes, self._scheme)
        except ValueError as error:
            raise SourceInvalid(
                str(error),
                code="checkpoint.format",
                hints=("check that config.json belongs to these weights",),
            ) from error
        self._linears = {f"{linear.name}.weight": linear for linear in linears}
        self._transposed = _transposed(config)
        packed = {
            f"{linear.name}.{part}"
            for linear in linears
            for part in parts_of(self._scheme)
        }
        self._tensors = {
            name: entry
            for name, entry in entries.items()
            if name not in packed and not name.endswith(_CACHE_ENDINGS)
        }
        for name, linear in self._linears.items():
            self._tensors[name] = self._entry(name, linear)

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
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Every tensor of the float model by name, sorted; places mean nothing."""
        return {name: self._tensors[name] for name in sorted(self._tensors)}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def entry(self, name: str) -> TensorEntry:
        """
        What a float checkpoint's header would say.

        Raises:
            SourceInvalid: `checkpoint.missing-tensor`.
        """
        return self._tensors[name] if name in self else self._reader.entry(name)

    def read(self, name: str) -> Tensor:
        """
        One tensor: a dequantized weight in float32, any other in its own dtype.

        Raises:
            SourceInvalid: It is missing or broken.
        """
        from lmi_build.checkpoint.formats.codec import decode, weight_of

        linear = self._linears.get(name)
        if linear is None:
            return self._reader.read(name)
        names = [f"{linear.name}.{part}" for part in linear.parts]
        tensors = {full: self._reader.read(full) for full in names}
        weight_OI = weight_of(decode(tensors, linear.name, self._scheme))
        return weight_OI.T.contiguous() if self._turned(linear) else weight_OI

    def _turned(self, linear: QuantizedLinear) -> bool:
        """A head is never stored as [in, out]."""
        return self._transposed and linear.name != LM_HEAD

    def _entry(self, name: str, linear: QuantizedLinear) -> TensorEntry:
        num_outputs, num_inputs = linear.num_outputs, linear.num_inputs
        if self._scheme.packing == "pack-quantized":
            # The last word of a row may be full in part; only this tensor says it.
            shape = self._reader.read(f"{linear.name}.weight_shape")
            num_outputs, num_inputs = (int(size) for size in shape.tolist())
        sizes = (num_outputs, num_inputs)
        return TensorEntry(
            name=name,
            dtype="float32",
            shape=sizes[::-1] if self._turned(linear) else sizes,
            begin=0,
            end=4 * num_outputs * num_inputs,
        )


_CACHE_ENDINGS = tuple(f".{part}" for part in KV_CACHE_PARTS)


def _transposed(config: Mapping[str, Any]) -> bool:
    """Whether the architecture stores its linears as [I, O] when they are float."""
    names = config.get("architectures") or [""]
    known = architectures().get(str(names[0]))
    return known is not None and known.transposed


def write_dequantized(source: Path, out: Path) -> None:
    """
    Write the float model that a quantized folder means, one tensor in memory.

    Args:
        source: The quantized folder.
        out: Folder to fill; it exists and is empty.

    Raises:
        SourceInvalid: The folder is broken.
        Unsupported: `checkpoint.scheme`.
        OSError: The disk is full or cannot be written.
    """
    with DequantizedReader(source) as reader:
        entries = reader.tensors
        plans = [
            TensorPlan(name=name, dtype=entry.dtype, shape=entry.shape)
            for name, entry in entries.items()
        ]

        def data(name: str) -> Iterator[memoryview]:
            yield byte_view(reader.read(name).contiguous())

        write_checkpoint(out, plans, data)
    text = json.dumps(float_config(source), indent=2, sort_keys=True) + "\n"
    (out / "config.json").write_text(text, "utf-8")
    for path in sorted(source.iterdir()):
        known = path.suffix == ".safetensors" or path.name in {*_STALE, INDEX_NAME}
        if path.is_file() and not known and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
