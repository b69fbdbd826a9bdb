"""The built-in methods that watch samples move through the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmi_build.catalog.architectures import find_architecture
from lmi_build.decoders.decoder_config import read_config
from lmi_build.errors import DoesNotFit, StageFailed
from lmi_build.quantizers.activations import (
    HeldActivations,
    Room,
    SpilledActivations,
)
from lmi_build.quantizers.embedding import embed
from lmi_build.quantizers.memory import (
    USABLE_SHARE,
    available_bytes,
    decide_spill,
    walk_need,
)
from lmi_build.quantizers.options import options_from_params
from lmi_build.quantizers.walker import Walker
from lmi_build.units import format_bytes
from lmi_build.values.quant import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from lmi_build.checkpoint.ledger import LedgerRow
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.quantizers.activations import Activations
    from lmi_build.quantizers.memory import MemoryNeed
    from lmi_build.quantizers.state import BlockState
    from lmi_build.quantizers.targets import Linear
    from lmi_build.spi import Job


class CalibratedWork:
    """
    The blocks of a model, one after another, with the samples between them.

    Args:
        job: The stage's job.
        reader: The model.
        config: Its `config.json`.
        linears: What to quantize.
        tokens_NL: Token windows, int64 [N, L].
        state: Finished blocks, and the activations after the last of them.

    Raises:
        StageFailed: `quantize.architecture`.
        DoesNotFit: `quantize.memory`.
        Unsupported: The config holds what the decoder does not know.
    """

    def __init__(
        self,
        job: Job,
        reader: CheckpointReader,
        config: Mapping[str, Any],
        linears: tuple[Linear, ...],
        tokens_NL: Tensor,
        state: BlockState,
    ) -> None:
        architecture = find_architecture(config, reader)
        if architecture is None:
            raise StageFailed(
                f"architecture {config.get('architectures')} is not known to `builtin`",
                code="quantize.architecture",
                hints=("use `method: int8` or `rtn`, which need no map",),
            )
        params: Any = job.params
        dtype = getattr(torch, params["compute_dtype"])
        device = torch.device(str(job.settings.get("device") or "cpu"))
        decoder = read_config(config)
        enter = embed(architecture, decoder, reader, tokens_NL, dtype)
        width = enter(slice(0, 1)).shape[2]
        need = walk_need(
            linears,
            options=options_from_params(params),
            num_tokens=tokens_NL.numel(),
            seq_len=tokens_NL.shape[1],
            hidden_size=width,
            item_bytes=dtype.itemsize,
            parallel=decoder.parallel,
        )
        folder = _spill_folder(job, need)
        _try_largest(need)
        samples, length = tokens_NL.shape
        self._num_layers = decoder.num_layers
        self._head = next((x for x in linears if x.is_head), None)
        self.num_blocks = self._num_layers + (self._head is not None)
        shape = (samples, length, width)
        self.x = _residual(folder, shape, dtype, device)
        self._walker = Walker(
            reader=reader,
            architecture=architecture,
            config=decoder,
            x=self.x,
            room=Room(samples, length, dtype, device=device, folder=folder),
            options=options_from_params(params),
            scheme=QuantScheme(**params["scheme"]),
            chosen=frozenset(linear.name for linear in linears),
        )
        if state.resume():
            state.load_activations(self.x)
            return
        for part in self._walker.parts:
            self.x.store(part, enter(part).to(device))

    def step(
        self, index: int
    ) -> tuple[dict[str, Tensor], tuple[LedgerRow, ...], Activations | None]:
        """
        Quantize one block, or the head behind them.

        The activations are needed unless it is the last.
        """
        if index == self._num_layers and self._head is not None:
            result = self._walker.quantize_head(self._head)
        else:
            result = self._walker.quantize_block(index)
        last = index + 1 == self.num_blocks
        return result.tensors, tuple(result.rows), None if last else self.x


def _residual(
    folder: Path | None,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Activations:
    """Room for the residual stream [N, L, D], in memory or in a file."""
    if folder is None:
        return HeldActivations(torch.empty(shape, dtype=dtype, device=device))
    return SpilledActivations(folder / "residual.bin", shape, dtype, device=device)


def _try_largest(need: MemoryNeed) -> None:
    """
    Take the memory of the largest layer once, before the first block.

    What is free is only a promise until it is written to; a machine that breaks it
    does so now, not when that layer's turn comes.
    """
    try:
        torch.empty(need.block_bytes + need.work_bytes, dtype=torch.uint8).fill_(1)
    except RuntimeError as error:
        raise DoesNotFit(
            f"this process cannot get the {format_bytes(need.work_bytes)} that the "
            f"largest layer `{need.largest}` takes: {str(error).splitlines()[0]}",
            code="quantize.memory",
            hints=("free memory, raise the process's limit, or use a larger machine",),
        ) from error


def _spill_folder(job: Job, need: MemoryNeed) -> Path | None:
    """Where activations go when memory does not hold them; None where it does."""
    stated = int(str(job.settings.get("memory_bytes") or 0))
    limit = stated or int(available_bytes() * USABLE_SHARE)
    if not decide_spill(need, limit_bytes=limit, stated=bool(stated)):
        return None
    folder = job.state / "spilled"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
