"""
Finished blocks kept while the next one is on its way.

Writing what a block left, hashing it and waiting for the disk takes a tenth of the time
of a small model's block, and none of it needs the processor for long. So a thread of
its own does it. The samples' activations are written from where they lie: the first
chunk of the next block that would replace some of them waits until the system has them
(`Activations.held`). By then nothing large of the block before is left in memory, since
what needs most of it, a block's last linears, comes after.

A block counts as finished when its record is on disk, and is told then, in order.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from lmi_build.events import StageNote, StageProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmi_build.checkpoint.ledger import LedgerRow
    from lmi_build.events import Emit
    from lmi_build.quantizers.activations import Activations
    from lmi_build.quantizers.state import BlockState

    Done = tuple[dict[str, Tensor], tuple[LedgerRow, ...], Activations | None]
    Step = Callable[[int], Done]


def run_blocks(
    stage: str, emit: Emit, state: BlockState, num_blocks: int, step: Step
) -> None:
    """
    Finish the blocks that are not finished yet.

    Args:
        stage: For events.
        emit: Told of every block that is kept; by one thread at a time.
        state: Keeps them.
        num_blocks: Of the model.
        step: Computes one block. Where it gives activations, the next block may begin
            while they are written.

    Raises:
        OSError: A block could not be written.
    """
    if state.blocks:
        emit(
            StageNote(
                stage=stage,
                level="info",
                code="quantize.resumed",
                message=f"going on after block {len(state.blocks)} of {num_blocks}",
            )
        )

    def keep(index: int, done: Done, copied: Future[None]) -> None:
        tensors, rows, activations = done
        try:
            with torch.inference_mode():
                state.commit(
                    tensors,
                    rows,
                    activations=activations,
                    on_copied=lambda: copied.set_result(None),
                )
        finally:
            # Whoever waits goes on; what went wrong is told by the future of this call.
            if not copied.done():
                copied.set_result(None)
        emit(
            StageProgress(stage=stage, done=index + 1, total=num_blocks, unit="blocks")
        )

    with ThreadPoolExecutor(1) as keeper:
        kept: Future[None] | None = None
        for index in range(len(state.blocks), num_blocks):
            done = step(index)
            if kept is not None:
                kept.result()
            copied: Future[None] = Future()
            kept = keeper.submit(keep, index, done, copied)
            activations = done[2]
            del done
            if activations is None:
                kept.result()
            else:
                activations.held = copied
        if kept is not None:
            kept.result()
