"""
The built-in quantizer's work, run in a process of its own.

Blocks are finished one after another into `job.state`; when the last one is done the
checkpoint is put together in `job.out`: shards, config, tokenizer and ledger.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.architectures import find_architecture
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.digest import digest_file, digest_json
from lmi_build.errors import StageFailed
from lmi_build.quantizers.assemble import assemble
from lmi_build.quantizers.calibration import check_vocabulary
from lmi_build.quantizers.calibration_windows import read_windows
from lmi_build.quantizers.coverage import Coverage, coverage_notes
from lmi_build.quantizers.documents import read_document
from lmi_build.quantizers.keeping import run_blocks
from lmi_build.quantizers.options import options_from_params
from lmi_build.quantizers.state import BlockState
from lmi_build.quantizers.targets import (
    select,
)
from lmi_build.values.quant import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.events import Emit
    from lmi_build.quantizers.keeping import Step
    from lmi_build.quantizers.targets import Linear
    from lmi_build.spi import Job

# Beside the ledger.
COVERAGE_NAME = "coverage.json"
# glibc's `mallopt` parameters. Buffers from 16 MiB on are returned to the system when
# they are freed; smaller ones, made and freed thousands of times, are reused, or the
# kernel would spend its time on clearing their pages. Threads share two arenas.
_MALLOC = (
    (-3, 16 << 20),  # M_MMAP_THRESHOLD
    (-1, 32 << 20),  # M_TRIM_THRESHOLD
    (-8, 2),  # M_ARENA_MAX
)


def run(job: Job, emit: Emit) -> None:
    """
    Quantize `job.inputs["model"]` into `job.out`.

    Args:
        job: `params` as `BuiltinQuantizer.lower` made them; `settings` may hold
            `calibration_names` and `threads`.
        emit: Told of every finished block.

    Raises:
        SourceInvalid: The model or the calibration text is broken.
        StageFailed: The numbers went wrong; the message names the layer.
        ToolMissing: A package for the calibration file is missing.
    """
    # The number in the key, if the bytes hang on it, goes before that of this machine.
    threads = job.params.get("threads") or job.settings.get("threads") or 0
    _prepare_process(int(str(threads)))
    import torch

    from lmi_build.checkpoint.formats.codec import NotRepresentable
    from lmi_build.quantizers.finite import check_finite

    model = job.inputs["model"]
    config = read_document(model / "config.json")
    with torch.inference_mode(), CheckpointReader(model) as reader:
        shapes = {name: (e.dtype, e.shape) for name, e in reader.tensors.items()}
        linears = select(
            shapes,
            architecture=find_architecture(config),
            ignore=[str(pattern) for pattern in _list(job.params["ignore"])],
            lm_head=bool(job.params.get("lm_head")),
        )
        if not linears:
            raise StageFailed(
                f"`{model}` has no linear layer to quantize",
                code="quantize.nothing",
                hints=("remove patterns from `quantize.ignore`",),
            )
        made = {f"{linear.name}.weight" for linear in linears}
        check_finite(reader, [name for name in shapes if name not in made])
        state = BlockState(job.state, identity=_identity(job, model))
        work = _work(job, emit, reader, config, linears, state)
        try:
            run_blocks(job.stage, emit, state, *work)
        except NotRepresentable as error:
            raise StageFailed(
                f"{error}",
                code="quantize.format",
                hints=(
                    "name it in `quantize.ignore`, so that it stays in float",
                    "or take another `quantize.format`, whose scales are wider",
                ),
            ) from error
        assemble(job, reader, config, linears, state)
        _report_coverage(job, emit, state)


def _report_coverage(job: Job, emit: Emit, state: BlockState) -> None:
    """Write how many tokens each layer saw, and warn of those that saw too few."""
    seen = [row for row in state.rows() if row.tokens is not None]
    if not seen:
        return
    calibration: Any = job.params["calibration"]
    coverage = Coverage(
        num_tokens=calibration["num_samples"] * calibration["max_seq_len"]
    )
    for row in seen:
        coverage.add(row.module, row.tokens or 0)
    text = json.dumps(coverage.report(), indent=1, sort_keys=True) + "\n"
    (job.out / COVERAGE_NAME).write_text(text, "utf-8")
    for note in coverage_notes(job.stage, coverage):
        emit(note)


def _prepare_process(num_threads: int) -> None:
    """
    Keep waiting threads asleep and freed memory returned, before torch is loaded.

    The OpenMP runtime spins between small products by default, which burns as much CPU
    time as the work itself as soon as the machine is shared; falling asleep at once
    doubles the wall time. So they spin for a tenth of a millisecond.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for parameter, value in _MALLOC:
                libc.mallopt(parameter, value)
    import torch

    if num_threads:
        torch.set_num_threads(num_threads)


def _list(value: Any) -> list[Any]:
    return list(value)


def _identity(job: Job, model: Path) -> str:
    """Names the work a state folder belongs to."""
    import torch

    sizes = {
        path.name: path.stat().st_size
        for path in sorted(model.iterdir())
        if path.is_file()
    }
    return digest_json(
        {
            "params": job.params,
            "files": sizes,
            "config": digest_file(model / "config.json"),
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
        }
    )


def _work(
    job: Job,
    emit: Emit,
    reader: CheckpointReader,
    config: Mapping[str, Any],
    linears: tuple[Linear, ...],
    state: BlockState,
) -> tuple[int, Step]:
    """The number of blocks, and what finishes one of them."""
    import torch

    from lmi_build.quantizers.calibrated import CalibratedWork
    from lmi_build.quantizers.data_free import DataFreeWork

    options = options_from_params(job.params)
    if not options.calibrates:
        params: Any = job.params
        free = DataFreeWork(
            reader,
            linears,
            options,
            QuantScheme(**params["scheme"]),
        )
        state.resume()
        return free.num_blocks, free.step
    tokens_NL = torch.tensor(read_windows(job, emit), dtype=torch.int64)
    architecture = find_architecture(config, reader)
    if architecture is not None:
        table = reader.entry(f"{architecture.embedding}.weight")
        check_vocabulary(int(tokens_NL.max()), table.shape[0])
    work = CalibratedWork(job, reader, config, linears, tokens_NL, state)
    return work.num_blocks, work.step
