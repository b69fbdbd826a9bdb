"""
A quantized checkpoint put together: shards, ledger, config and the model's other files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.ledger import check_total, copied, write_ledger
from lmi_build.checkpoint.reader import INDEX_NAME, CheckpointReader
from lmi_build.checkpoint.writer import write_checkpoint
from lmi_build.digest import CHUNK_BYTES
from lmi_build.quantizers.targets import candidates, checkpoint_plans

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
    source = reader.tensors
    shapes = {name: (entry.dtype, entry.shape) for name, entry in source.items()}
    plans = checkpoint_plans(
        shapes, linears, bits=params["bits"], group_size=params["group_size"]
    )
    places = state.places()

    def data(name: str) -> Iterator[bytes]:
        if name in places:
            yield from _read_range(*places[name])
        else:
            yield from reader.stream(name)

    write_checkpoint(job.out, plans, data)
    rows = list(state.rows())
    done = {row.source for row in rows}
    rows += [copied(entry) for name, entry in source.items() if name not in done]
    with CheckpointReader(job.out) as result:
        check_total(rows, source, result.tensors)
    write_ledger(job.out, rows)
    _copy_files(job.inputs["model"], job.out)
    scheme = quantization_config(params, reader, linears)
    config = {**config, "quantization_config": scheme}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (job.out / "config.json").write_text(text, "utf-8")


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


def quantization_config(
    params: Any, reader: CheckpointReader, linears: tuple[Linear, ...]
) -> dict[str, Any]:
    """
    The entry of `config.json` that transformers, vLLM and ONNX Runtime read.

    `desc_act` is false whatever the walk was: groups are static, so `g_idx` is the
    identity and no reader needs to permute.
    """
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": params["bits"],
        "group_size": params["group_size"],
        "sym": params["sym"],
        "desc_act": False,
        "static_groups": True,
        "true_sequential": True,
        "lm_head": False,
        "damp_percent": params.get("damp_percent", 0.01),
        "pack_dtype": "int32",
        "meta": {"quantizer": ["lmi-build"], "method": params["method"]},
    }
    chosen = {linear.name for linear in linears}
    shapes = {name: (e.dtype, e.shape) for name, e in reader.tensors.items()}
    every = {linear.name for linear in candidates(shapes, architecture=None)}
    left = sorted(every - chosen)
    if left:
        config["modules_to_not_convert"] = left
        config["dynamic"] = {f"-:^{_escape(name)}$": {} for name in left}
    return config


def _escape(name: str) -> str:
    return name.replace(".", r"\.")
