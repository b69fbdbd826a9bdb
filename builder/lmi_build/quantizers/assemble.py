"""
A quantized checkpoint put together: shards, ledger, config and the model's other files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.formats.config import float_linears, quantization_config
from lmi_build.checkpoint.formats.layout import checkpoint_plans
from lmi_build.checkpoint.ledger import check_total, copied, write_ledger
from lmi_build.checkpoint.reader import INDEX_NAME, CheckpointReader
from lmi_build.checkpoint.writer import TensorPlan, write_checkpoint
from lmi_build.digest import CHUNK_BYTES
from lmi_build.values.quant import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.quantizers.state import BlockState
    from lmi_build.quantizers.targets import Linear
    from lmi_build.spi import Job


def assemble(
    job: Job,
    reader: CheckpointReader,
    config: dict[str, Any],
    linears: tuple[Linear, ...],
    state: BlockState,
) -> None:
    """
    Put the checkpoint together in `job.out` and prove that it is whole.

    Args:
        job: The stage's job.
        reader: The model that went in.
        config: Its `config.json`.
        linears: What was quantized.
        state: Every finished block.

    Raises:
        StageFailed: `checkpoint.ledger`; a fault of lmi-build.
    """
    params: Any = job.params
    scheme = QuantScheme(**params["scheme"])
    source = reader.tensors
    shapes = {name: (entry.dtype, entry.shape) for name, entry in source.items()}
    rows = list(state.rows())
    # Scales of the cache stand beside attentions, made of no tensor.
    extra = [
        TensorPlan(name=item.name, dtype=item.dtype, shape=item.shape)
        for row in rows
        if row.source is None
        for item in row.results
    ]
    plans = checkpoint_plans(shapes, linears, scheme, extra)
    places = state.places()

    def data(name: str) -> Iterator[bytes]:
        if name in places:
            yield from _read_range(*places[name])
        else:
            yield from reader.stream(name)

    write_checkpoint(job.out, plans, data)
    done = {row.source for row in rows}
    rows += [copied(entry) for name, entry in source.items() if name not in done]
    with CheckpointReader(job.out) as result:
        check_total(rows, source, result.tensors)
    write_ledger(job.out, rows)
    _copy_files(job.inputs["model"], job.out)
    names = [linear.name for linear in linears]
    entry = quantization_config(
        scheme,
        left=float_linears(shapes, names),
        linears=names,
        method=params["method"],
        options=params,
    )
    _write_config(job.out, {**config, "quantization_config": entry}, linears)


def _write_config(
    out: Path, config: dict[str, Any], linears: tuple[Linear, ...]
) -> None:
    if any(linear.shared for linear in linears):
        # What was one matrix is two now.
        config["tie_word_embeddings"] = False
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (out / "config.json").write_text(text, "utf-8")


def _read_range(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as stream:
        stream.seek(begin)
        while begin < end:
            piece = stream.read(min(CHUNK_BYTES, end - begin))
            if not piece:
                raise OSError(f"{path} ends at {begin}, expected {end}")
            begin += len(piece)
            yield piece


def _copy_files(model: Path, out: Path) -> None:
    """Carry over everything but weights and config: tokenizer, licence, card."""
    for path in sorted(model.rglob("*")):
        name = path.relative_to(model)
        if not path.is_file() or path.suffix == ".safetensors":
            continue
        if name.as_posix() in {"config.json", INDEX_NAME} or (out / name).exists():
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(path.read_bytes())
