"""
GPTQ through a whole decoder with one block in memory.

All samples move through block k before block k + 1 is read. Inside a block the groups
of linears are quantized in the order of computation, and what reaches the next group
was computed with the weights already quantized. So every later layer repairs what the
earlier ones did, each linear runs once, and only the residual stream and the widest
input inside a block are ever kept for all samples.

Shape suffixes: N samples, L tokens of a sample, D residual width, I inputs of a group,
O outputs of a group together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmi_build.checkpoint.ledger import LedgerResult, LedgerRow
from lmi_build.checkpoint.writer import tensor_plan
from lmi_build.errors import SourceInvalid, StageFailed
from lmi_build.numerics.gptq import NotPositiveDefinite, Quantized, gptq
from lmi_build.numerics.grids import Grid, dequantize
from lmi_build.numerics.observers import HessianObserver
from lmi_build.numerics.packing import pack_rows, pack_zeros
from lmi_build.quantizers.decoder import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lmi_build.catalog.architectures import Architecture
    from lmi_build.checkpoint.header import TensorEntry
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.quantizers.decoder import DecoderConfig

# Tokens per chunk: bfloat16 products on CPUs run best with about this many rows.
CHUNK_TOKENS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class GptqSettings:
    """
    What the recipe decided.

    Args:
        bits: Bits of one code.
        group_size: Input channels per scale, or -1.
        sym: Without zero points.
        desc_act: Visit channels by falling activation.
        damp_percent: Dampening to begin with.
        num_sweeps: Sweeps of coordinate descent.
    """

    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    damp_percent: float
    num_sweeps: int


@dataclass(kw_only=True)
class BlockResult:
    """
    A finished block.

    Args:
        tensors: Packed results by name.
        rows: Ledger rows of the quantized linears.
    """

    tensors: dict[str, Tensor]
    rows: list[LedgerRow]


class Walker:
    """
    The residual stream of all samples, on its way through the blocks.

    Args:
        reader: The model.
        architecture: Names of its parts.
        config: Numbers of a block.
        x_NLD: What enters the first block; changed in place.
        settings: What the recipe decided.
        chosen: Full names of the linears to quantize.
        rotary: Tables for L positions.
    """

    def __init__(
        self,
        *,
        reader: CheckpointReader,
        architecture: Architecture,
        config: DecoderConfig,
        x_NLD: Tensor,
        settings: GptqSettings,
        chosen: frozenset[str],
        rotary: tuple[Tensor, Tensor],
    ) -> None:
        self.reader = reader
        self.architecture = architecture
        self.config = config
        self.x_NLD = x_NLD
        self.settings = settings
        self.chosen = chosen
        self.rotary = rotary
        self.chunk_len = max(1, CHUNK_TOKENS // x_NLD.shape[1])
        self._scratch = torch.empty(0, dtype=x_NLD.dtype)

    def quantize_block(self, index: int) -> BlockResult:
        """
        Quantize one block and move all samples through it.

        Raises:
            SourceInvalid: `quantize.weight-not-finite`.
            StageFailed: `quantize.not-finite`, `quantize.unused` or `quantize.damp`.
        """
        arch, x_NLD = self.architecture, self.x_NLD
        block = self._load(index)
        result = BlockResult(tensors={}, rows=[])
        self._wide(max(block.weights[x].shape[1] for x in (arch.output, arch.down)))

        def normed(name: str) -> Callable[[slice], Tensor]:
            return lambda part: block.norm(name, x_NLD[part])

        self._group(index, block, arch.groups[0], normed(arch.attention_norm), result)
        mixed_NLI = self._wide(block.weights[arch.output].shape[1])

        def attend(part: slice) -> Tensor:
            mixed_NLI[part] = block.attention(
                block.norm(arch.attention_norm, x_NLD[part])
            )
            return mixed_NLI[part]

        self._group(index, block, arch.groups[1], attend, result)

        def add_attention(part: slice) -> Tensor:
            x_NLD[part] += block.linear(arch.output, mixed_NLI[part])
            return block.norm(arch.mlp_norm, x_NLD[part])

        self._group(index, block, arch.groups[2], add_attention, result)
        inner_NLI = self._wide(block.weights[arch.down].shape[1])

        def gate(part: slice) -> Tensor:
            inner_NLI[part] = block.gated(block.norm(arch.mlp_norm, x_NLD[part]))
            return inner_NLI[part]

        self._group(index, block, arch.groups[3], gate, result)
        for part in self._chunks():
            x_NLD[part] += block.linear(arch.down, inner_NLI[part])
        return result

    def _wide(self, width: int) -> Tensor:
        """Room for one input of all samples; every call reuses the same memory."""
        count = self.x_NLD.shape[0] * self.x_NLD.shape[1] * width
        if self._scratch.numel() < count:
            self._scratch = torch.empty(count, dtype=self.x_NLD.dtype)
        return self._scratch[:count].view(*self.x_NLD.shape[:2], width)

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, self.x_NLD.shape[0], self.chunk_len):
            yield slice(start, start + self.chunk_len)

    def _load(self, index: int) -> Block:
        prefix = self.architecture.block(index)
        weights: dict[str, Tensor] = {}
        biases: dict[str, Tensor] = {}
        for name in (*self.architecture.linears, *self.architecture.norms):
            weights[name] = self._read(f"{prefix}.{name}.weight")
            if f"{prefix}.{name}.bias" in self.reader:
                biases[name] = self._read(f"{prefix}.{name}.bias")
        return Block(
            architecture=self.architecture,
            config=self.config,
            weights=weights,
            biases=biases,
            rotary=self.rotary,
        )

    def _read(self, name: str) -> Tensor:
        return read_finite(self.reader, name).to(self.x_NLD.dtype)

    def _group(
        self,
        index: int,
        block: Block,
        parts: Sequence[str],
        make_input: Callable[[slice], Tensor],
        result: BlockResult,
    ) -> None:
        """Make a group's inputs for all samples, then quantize its linears."""
        prefix = self.architecture.block(index)
        num_inputs = block.weights[parts[0]].shape[1]
        chosen = [part for part in parts if f"{prefix}.{part}" in self.chosen]
        observer = HessianObserver(
            num_inputs, max_tokens=self.chunk_len * self.x_NLD.shape[1]
        )
        for samples in self._chunks():
            x_SLI = make_input(samples)
            if chosen:
                observer.add(x_SLI.reshape(-1, num_inputs))
        if not chosen:
            return
        where = f"{prefix}.{chosen[0]}"
        if not observer.is_finite():
            raise self._not_finite(where)
        quantized = self._quantize(where, chosen, observer.mean())
        w_IO = dequantize(quantized.code_IO, quantized.scale_GO, quantized.zero_GO)
        stop = 0
        for part in chosen:
            columns = slice(stop, stop + block.weights[part].shape[0])
            stop = columns.stop
            name = f"{prefix}.{part}"
            tensors, row = pack_linear(
                self.reader.entry(f"{name}.weight"),
                quantized,
                columns,
                bits=self.settings.bits,
            )
            result.tensors |= tensors
            result.rows.append(row)
            weight_OI = w_IO[:, columns].T.to(self.x_NLD.dtype)
            block.weights[part] = weight_OI.contiguous()

    def _quantize(self, where: str, parts: Sequence[str], h_II: Tensor) -> Quantized:
        if not bool((h_II.diagonal() > 0).any()):
            raise StageFailed(
                f"`{where}` never sees a number other than zero during calibration",
                code="quantize.unused",
                hints=(f"add `{where}` to `quantize.ignore`",),
            )
        prefix = where[: -len(parts[0])]
        w_IO = torch.cat(
            [read_finite(self.reader, f"{prefix}{p}.weight").float() for p in parts]
        ).T.contiguous()
        size = self.settings.group_size
        grid = Grid(
            bits=self.settings.bits,
            group_size=w_IO.shape[0] if size == -1 else size,
            sym=self.settings.sym,
        )
        try:
            return gptq(
                w_IO,
                h_II,
                grid=grid,
                desc_act=self.settings.desc_act,
                damp_percent=self.settings.damp_percent,
                num_sweeps=self.settings.num_sweeps,
            )
        except NotPositiveDefinite as error:
            raise StageFailed(
                f"the inputs of `{where}` leave no stable Hessian: {error}",
                code="quantize.damp",
                hints=("raise `quantize.calibration.num_samples`",),
            ) from error

    def _not_finite(self, where: str) -> StageFailed:
        """Find the samples that spoilt the input of a layer."""
        finite_N = torch.isfinite(self.x_NLD).flatten(1).all(dim=1)
        samples = [at for at, fine in enumerate(finite_N.tolist()) if not fine]
        detail = f"sample {samples[0]} is the first" if samples else "inside the layer"
        return StageFailed(
            f"the input of `{where}` is NaN or infinite ({detail})",
            code="quantize.not-finite",
            hints=(
                "check that the float model itself answers that text",
                "use `model.dtype: float32` if its activations overflow",
            ),
        )


def read_finite(reader: CheckpointReader, name: str) -> Tensor:
    """
    One tensor, all of its numbers finite.

    Raises:
        SourceInvalid: `quantize.weight-not-finite`, naming the tensor and the count.
    """
    tensor = reader.read(name)
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise SourceInvalid(
            f"`{name}` has {bad} of {tensor.numel()} values that are NaN or infinite",
            code="quantize.weight-not-finite",
            hints=("fetch the model again, or use another revision of it",),
        )
    return tensor


def pack_linear(
    entry: TensorEntry, quantized: Quantized, columns: slice, *, bits: int
) -> tuple[dict[str, Tensor], LedgerRow]:
    """
    The four tensors of one linear, cut from a group's result, with their ledger row.

    Args:
        entry: The weight as the source's header has it.
        quantized: Result of the group.
        columns: The linear's outputs in it.
        bits: Bits of one code.
    """
    code_IO = quantized.code_IO[:, columns].contiguous()
    scale_GO = quantized.scale_GO[:, columns]
    zero_GO = quantized.zero_GO[:, columns].contiguous()
    group = code_IO.shape[0] // scale_GO.shape[0]
    name = entry.name.removesuffix(".weight")
    tensors = {
        f"{name}.qweight": pack_rows(code_IO, bits=bits),
        f"{name}.qzeros": pack_zeros(zero_GO, bits=bits),
        f"{name}.scales": scale_GO.to(torch.float16).contiguous(),
        f"{name}.g_idx": (torch.arange(code_IO.shape[0]) // group).to(torch.int32),
    }
    power = float(quantized.power_O[columns].sum())
    error = float(quantized.error_O[columns].sum())
    row = LedgerRow(
        source=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        action="quantized",
        results=tuple(_ledger_result(key, value) for key, value in tensors.items()),
        error=error / power if power > 0 else 0.0,
    )
    return tensors, row


def _ledger_result(name: str, tensor: Tensor) -> LedgerResult:
    plan = tensor_plan(name, tensor)
    return LedgerResult(name=name, dtype=plan.dtype, shape=plan.shape)
