"""
How much memory a walk through a decoder takes, and what to do when there is less.

Light and pure, but for the two readers of the machine: the planner estimates with the
same arithmetic by which the worker decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import DoesNotFit
from lmi_build.units import MiB, format_bytes

if TYPE_CHECKING:
    from collections.abc import Collection

    from lmi_build.quantizers.options import Options
    from lmi_build.quantizers.targets import Linear

# torch, tokenizers and their libraries, before a weight is read.
BASE_BYTES = 352 * MiB
# A machine's memory is never wholly ours; what is left lets the kernel cache files.
USABLE_SHARE = 0.9
FLOAT_BYTES = 4
_EXPERTS = ".experts."
# Chunks that are computed at once, at most.
MAX_LANES = 2
# Tokens of a chunk, and what attention and norms hold of it, in residual widths.
CHUNK_TOKENS, CHUNK_WIDTHS = 512, 16
# Rows of a head that are rounded at once.
HEAD_OUTPUTS = 16384
# Bytes for each of its codes while they are joined and packed.
CODE_COPIES = 4
# Alive at once while the widest layer is solved: H, which is factored in its own
# memory, and for AWQ's search one as the scales make it; weights, what is left of them
# to round and the search for scales. With 67 MB of H and 17 MB of weights, 8 x 512
# tokens, 556 MB were held at the peak where this and the rest say 591.
H_COPIES = {"gptq": 1, "awq": 2}
W_COPIES = 3

CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """
    What a walk keeps, in bytes.

    Args:
        block_bytes: The largest block in the type of the computation.
        work_bytes: Float32 matrices while the largest layer is solved.
        activation_bytes: Residual stream and scratch of all samples.
        chunk_bytes: What one chunk of samples needs inside a block.
        largest: Name of the largest layer, for messages.
    """

    block_bytes: int
    work_bytes: int
    activation_bytes: int
    chunk_bytes: int
    largest: str = ""

    @property
    def spilled_bytes(self) -> int:
        """Peak with all activations in files."""
        return BASE_BYTES + self.block_bytes + self.work_bytes + self.chunk_bytes

    @property
    def held_bytes(self) -> int:
        """Peak with all activations in memory."""
        return self.spilled_bytes + self.activation_bytes


def _largest_work(linears: Collection[Linear], options: Options) -> tuple[int, str]:
    """What solving the largest linear takes, in bytes, with its name."""
    copies = H_COPIES[options.method] if options.needs_hessian else 0
    # Linears that share an input are solved side by side; those of one width in a
    # module are at least as many.
    outputs: dict[tuple[str, int], int] = {}
    for x in linears:
        outputs[_place(x)] = outputs.get(_place(x), 0) + x.num_outputs

    def size(x: Linear) -> int:
        hessians = FLOAT_BYTES * copies * x.num_inputs**2
        weights = FLOAT_BYTES * W_COPIES * x.num_inputs
        if x.is_head:
            # A piece of it at a time, and all of its codes, which are packed at last.
            pieces = weights * min(x.num_outputs, HEAD_OUTPUTS)
            return 2 * hessians + pieces + CODE_COPIES * x.num_inputs * x.num_outputs
        return hessians + weights * outputs[_place(x)]

    largest = max(linears, key=size, default=None)
    return (0, "") if largest is None else (size(largest), largest.name)


def walk_need(
    linears: Collection[Linear],
    *,
    options: Options,
    num_tokens: int,
    seq_len: int,
    hidden_size: int,
    item_bytes: int,
    parallel: bool = False,
) -> MemoryNeed:
    """
    What quantizing these linears keeps in memory.

    Args:
        linears: Every linear that is quantized.
        options: What the recipe decided.
        num_tokens: Calibration tokens.
        seq_len: Tokens of one sample.
        hidden_size: Width of the residual stream.
        item_bytes: Bytes of one activation.
        parallel: Attention and the feed-forward part read the same residual, so that
            the inputs of both projections are kept at once.
    """
    work_bytes, name = _largest_work(linears, options)
    if not options.calibrates:
        return MemoryNeed(
            block_bytes=0,
            work_bytes=work_bytes,
            activation_bytes=0,
            chunk_bytes=0,
            largest=name,
        )
    blocks: dict[str, int] = {}
    for x in linears:
        blocks[x.block] = blocks.get(x.block, 0) + x.num_inputs * x.num_outputs
    inner = max((x.num_inputs for x in linears), default=hidden_size)
    widths = hidden_size + inner
    if parallel:
        widths += inner
    if not options.true_sequential or any(_EXPERTS in x.name for x in linears):
        widths += hidden_size
    chunk = max(seq_len, CHUNK_TOKENS)
    return MemoryNeed(
        block_bytes=item_bytes * max(blocks.values(), default=0),
        work_bytes=work_bytes,
        activation_bytes=num_tokens * widths * item_bytes,
        chunk_bytes=chunk * (CHUNK_WIDTHS * hidden_size + 3 * inner) * item_bytes,
        largest=name,
    )


def _place(x: Linear) -> tuple[str, int]:
    return x.name.rpartition(".")[0], x.num_inputs


def decide_spill(need: MemoryNeed, *, limit_bytes: int, stated: bool) -> bool:
    """
    Whether activations go to files.

    Args:
        need: Of this work.
        limit_bytes: What may be used.
        stated: Whether the user stated the limit; else it is what the machine has.

    Raises:
        DoesNotFit: `quantize.memory`: even the largest layer alone is too much.
    """
    if need.held_bytes <= limit_bytes:
        return False
    if need.spilled_bytes <= limit_bytes:
        return True
    source = "`--memory` allows" if stated else "this machine has free"
    raise DoesNotFit(
        f"quantizing needs {format_bytes(need.spilled_bytes)} of memory even with its "
        f"activations on disk, {source} {format_bytes(limit_bytes)}; the largest layer "
        f"`{need.largest}` alone takes {format_bytes(need.work_bytes)}",
        code="quantize.memory",
        hints=(
            f"use a machine with {format_bytes(need.spilled_bytes)} of free memory"
            + (", or raise `--memory`" if stated else ""),
            "or use `method: rtn` or `int8`, which need no calibration",
        ),
    )


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"),
    cgroup_files: tuple[tuple[str, str], ...] = CGROUP_FILES,
) -> int:
    """
    Memory this process may still take: the machine's, or its container's if smaller.

    Returns:
        Bytes; a very large number where the system does not tell.
    """
    found = [1 << 62]
    try:
        for line in meminfo.read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                found += [int(line.split()[1]) << 10]
    except OSError:
        # Not Linux; the container's limit below does not exist there either.
        return found[0]
    for limit_file, usage_file in cgroup_files:
        try:
            limit = Path(limit_file).read_text("utf-8").strip()
            usage = int(Path(usage_file).read_text("utf-8"))
        except OSError:
            continue
        if limit != "max":
            found.append(max(0, int(limit) - usage))
    return min(found)
