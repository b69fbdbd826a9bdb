"""
Rank files written in one pass over the source, no tensor of it read twice.

Every rank's header and the place of every block are known from shapes before a weight
is read. So the source is read from its first byte to its last, and each piece goes
straight to where it belongs, in as many rank files as want it (`block_writer`).
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from lmi_build.backends.trtllm.block_writer import BlockTarget, write_source
from lmi_build.backends.trtllm.checkpoint_files import RankFiles
from lmi_build.checkpoint.reader import byte_view
from lmi_build.checkpoint.writer import TensorPlan
from lmi_build.errors import StageFailed
from lmi_build.values.model import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from torch import Tensor

    from lmi_build.backends.trtllm.checkpoint_plan import RankPlan
    from lmi_build.backends.trtllm.checkpoint_shards import RankLinear
    from lmi_build.checkpoint.reader import CheckpointReader

    Shapes: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]

# Two hide the reading of one tensor behind the writing of another; more only make the
# disk seek.
NUM_THREADS = 2


class CodedLinears(Protocol):
    """Linears that come as codes, as tensors of TensorRT-LLM."""

    def shapes(self, linear: RankLinear) -> Shapes:
        """Dtype and shape of its tensors by full name, before any weight is read."""

    def tensors(self, linears: Sequence[RankLinear]) -> Iterator[Mapping[str, Tensor]]:
        """The tensors of each of several ranks' shares of the same parts."""


class _NoCodes:
    """For models that are float throughout."""

    def shapes(self, linear: RankLinear) -> Shapes:
        """There is none."""
        raise ValueError(f"nobody makes the codes of {linear.name}")

    def tensors(self, linears: Sequence[RankLinear]) -> Iterator[Mapping[str, Tensor]]:
        """There are none."""
        raise ValueError(f"nobody makes the codes of {linears[0].name}")


NO_CODES = _NoCodes()


def write_ranks(
    folder: Path,
    reader: CheckpointReader,
    plans: Sequence[RankPlan],
    *,
    coded: CodedLinears = NO_CODES,
    on_source: Callable[[int], None] = lambda _: None,
) -> None:
    """
    Write the files of all ranks.

    Args:
        folder: Where they go; it exists.
        reader: The source.
        plans: What each rank holds; their blocks lie inside the source's tensors.
        coded: Makes the tensors of linears that come as codes.
        on_source: Told how many sources are done.

    Raises:
        SourceInvalid: The source became shorter.
        Unsupported: `trtllm.float16-range`: a weight does not fit into float16.
        StageFailed: `trtllm.incomplete`: fewer bytes were written than planned.
        OSError: The disk is full or cannot be written.
    """
    targets = _by_source(plans)
    order = sorted(targets, key=reader.position)
    for name in order:
        reader.descriptor(name)  # opened here: threads only read

    def write(name: str) -> None:
        write_source(files, reader, reader.entry(name), targets[name])

    groups = _groups(plans)
    with RankFiles(folder, [_tensor_plans(plan, coded) for plan in plans]) as files:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            try:
                for done, _ in enumerate(pool.map(write, order), start=1):
                    on_source(done)
            finally:
                pool.shutdown(cancel_futures=True)
        for done, group in enumerate(groups, start=1 + len(order)):
            _write_group(files, group, coded)
            on_source(done)
        _check_bytes(files, plans, coded)
        files.finish()


def num_sources(plans: Sequence[RankPlan]) -> int:
    """How many steps `write_ranks` tells of."""
    return len(_by_source(plans)) + len(_groups(plans))


def _by_source(plans: Iterable[RankPlan]) -> dict[str, list[BlockTarget]]:
    targets: dict[str, list[BlockTarget]] = defaultdict(list)
    for plan in plans:
        for tensor in plan.tensors:
            offset = 0
            for block in tensor.blocks:
                if block.source:
                    targets[block.source].append(
                        BlockTarget(
                            rank=plan.rank, tensor=tensor, block=block, offset=offset
                        )
                    )
                offset += block.num_elements * DTYPE_BITS[tensor.dtype] // 8
    return targets


def _groups(plans: Iterable[RankPlan]) -> list[list[tuple[int, RankLinear]]]:
    """Coded linears, with the ranks that share their parts together."""
    groups: dict[tuple[str, ...], list[tuple[int, RankLinear]]] = defaultdict(list)
    for plan in plans:
        for linear in plan.linears:
            key = (linear.name, *(cut.module for cut in linear.cuts))
            groups[key].append((plan.rank, linear))
    return list(groups.values())


def _tensor_plans(plan: RankPlan, coded: CodedLinears) -> list[TensorPlan]:
    tensors = [
        TensorPlan(name=item.name, dtype=item.dtype, shape=item.shape)
        for item in plan.tensors
    ]
    made: dict[str, TensorPlan] = {}
    for linear in plan.linears:
        for name, (dtype, shape) in coded.shapes(linear).items():
            # Experts name the tensor that they are all in.
            made[name] = TensorPlan(name=name, dtype=dtype, shape=shape)
    return [*tensors, *made.values()]


def _write_group(
    files: RankFiles, group: Sequence[tuple[int, RankLinear]], coded: CodedLinears
) -> None:
    made = coded.tensors([linear for _, linear in group])
    for (rank, linear), tensors in zip(group, made, strict=True):
        planned = coded.shapes(linear)
        number, count = linear.expert or (0, 1)
        piled = (count,) if linear.expert else ()
        for name, tensor in tensors.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            found = (dtype, (*piled, *tensor.shape))
            if planned.get(name) != found:
                msg = f"{name} is {found}, planned {planned.get(name)}"
                raise ValueError(msg)
            offset = number * tensor.numel() * tensor.element_size()
            files.write(rank, name, offset, byte_view(tensor.contiguous()))


def _check_bytes(
    files: RankFiles, plans: Sequence[RankPlan], coded: CodedLinears
) -> None:
    """Every planned byte but padding was written, none twice."""
    total = sum(t.num_bytes for plan in plans for t in _tensor_plans(plan, coded))
    padding = sum(
        block.num_elements * DTYPE_BITS[tensor.dtype] // 8
        for plan in plans
        for tensor in plan.tensors
        for block in tensor.blocks
        if not block.source
    )
    if files.num_written_bytes != total - padding:
        raise StageFailed(
            f"the rank files got {files.num_written_bytes} bytes of {total - padding}",
            code="trtllm.incomplete",
            hints=("this is a fault of lmi-build; please report it",),
        )
