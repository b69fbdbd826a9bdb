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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.digest import digest_bytes, digest_file, digest_json
from lmi_build.errors import SourceInvalid, StageFailed
from lmi_build.events import StageNote, StageProgress
from lmi_build.quantizers.assemble import assemble
from lmi_build.quantizers.calibration import (
    DOCUMENT_SEPARATOR,
    PYTHON_DOCS,
    builtin_texts,
    load_tokenizer,
    pack,
    read_texts,
)
from lmi_build.quantizers.state import BlockState
from lmi_build.quantizers.targets import (
    find_architecture,
    select,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from lmi_build.checkpoint.ledger import LedgerRow
    from lmi_build.events import Emit
    from lmi_build.quantizers.targets import Linear
    from lmi_build.spi import Job

    Done = tuple[dict[str, Tensor], tuple[LedgerRow, ...], Tensor | None]
    Step = Callable[[int], Done]

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
            `calibration_path` and `threads`.
        emit: Told of every finished block.

    Raises:
        SourceInvalid: The model or the calibration text is broken.
        StageFailed: The numbers went wrong; the message names the layer.
        ToolMissing: A package for the calibration file is missing.
    """
    _prepare_process(int(str(job.settings.get("threads") or 0)))
    import torch

    model = job.inputs["model"]
    config = _read_config(model)
    with torch.inference_mode(), CheckpointReader(model) as reader:
        shapes = {name: (e.dtype, e.shape) for name, e in reader.tensors.items()}
        linears = select(
            shapes,
            architecture=find_architecture(config),
            ignore=[str(pattern) for pattern in _list(job.params["ignore"])],
        )
        if not linears:
            raise StageFailed(
                f"`{model}` has no linear layer to quantize",
                code="quantize.nothing",
                hints=("remove patterns from `quantize.ignore`",),
            )
        state = BlockState(job.state, identity=_identity(job, model))
        make = _gptq_steps if job.params["method"] == "gptq" else _int8_steps
        _run_blocks(job, emit, state, *make(job, reader, config, linears, state))
        assemble(job, reader, config, linears, state)


def _prepare_process(num_threads: int) -> None:
    """
    Keep waiting threads asleep and freed memory returned, before torch is loaded.

    The OpenMP runtime spins between small products by default, which burns as much CPU
    time as the work itself as soon as the machine is shared.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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


def _read_config(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            f"`{path}` cannot be read: {error}",
            code="quantize.config",
            hints=("fetch the model again",),
        ) from error
    if not isinstance(config, dict):
        raise SourceInvalid(
            f"`{path}` is not a JSON object",
            code="quantize.config",
            hints=("fetch the model again",),
        )
    return config


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


def _run_blocks(
    job: Job, emit: Emit, state: BlockState, num_blocks: int, step: Step
) -> None:
    if state.blocks:
        emit(
            StageNote(
                stage=job.stage,
                level="info",
                code="quantize.resumed",
                message=f"going on after block {len(state.blocks)} of {num_blocks}",
            )
        )
    for index in range(len(state.blocks), num_blocks):
        tensors, rows, activations = step(index)
        state.commit(tensors, rows, activations=activations)
        emit(
            StageProgress(
                stage=job.stage, done=index + 1, total=num_blocks, unit="blocks"
            )
        )


def _gptq_steps(
    job: Job,
    reader: CheckpointReader,
    config: Mapping[str, Any],
    linears: tuple[Linear, ...],
    state: BlockState,
) -> tuple[int, Step]:
    import torch

    from lmi_build.quantizers.blockwise import GptqSettings, Walker
    from lmi_build.quantizers.decoder import read_config, rotary_tables

    architecture = find_architecture(config)
    if architecture is None:
        raise StageFailed(
            f"architecture {config.get('architectures')} is not known to `builtin`",
            code="quantize.architecture",
            hints=("use `method: int8`, which needs no map of the architecture",),
        )
    params: Any = job.params
    dtype = getattr(torch, params["compute_dtype"])
    decoder = read_config(config)
    tokens_NL = torch.tensor(_read_windows(job), dtype=torch.int64)
    embedding = f"{architecture.embedding}.weight"
    _check_vocabulary(tokens_NL, reader.entry(embedding).shape[0])
    unique, inverse_NL = torch.unique(tokens_NL, return_inverse=True)
    x_NLD = reader.read_rows(embedding, unique.tolist()).to(dtype)[inverse_NL]
    walker = Walker(
        reader=reader,
        architecture=architecture,
        config=decoder,
        x_NLD=x_NLD,
        settings=GptqSettings(
            bits=params["bits"],
            group_size=params["group_size"],
            sym=params["sym"],
            desc_act=params["desc_act"],
            damp_percent=params["damp_percent"],
            num_sweeps=params["num_sweeps"],
        ),
        chosen=frozenset(linear.name for linear in linears),
        rotary=rotary_tables(decoder, x_NLD.shape[1], dtype),
    )
    if state.resume():
        state.load_activations(x_NLD)
    num_blocks = int(config["num_hidden_layers"])

    def step(index: int) -> Done:
        result = walker.quantize_block(index)
        last = index + 1 == num_blocks
        return result.tensors, tuple(result.rows), None if last else x_NLD

    return num_blocks, step


def _read_windows(job: Job) -> list[list[int]]:
    """The token windows, from text whose digest is the one in the key."""
    calibration: Any = job.params["calibration"]
    model = job.inputs["model"]
    where = job.settings.get("calibration_path")
    path = Path(str(where)) if where else None
    if path is None:
        if calibration["format"] != PYTHON_DOCS:
            raise ValueError("job.settings lacks `calibration_path`")
        joined = DOCUMENT_SEPARATOR.join(builtin_texts(held_out=False))
        found = digest_bytes(joined.encode())
    else:
        found = digest_file(path)
    if found != calibration["digest"]:
        raise SourceInvalid(
            f"the calibration text changed since the plan was made: {found[:19]}..., "
            f"planned {calibration['digest'][:19]}...",
            code="calibration.moved",
            hints=("plan again", "build with the same Python version as the plan"),
        )
    template = _chat_template(model) if calibration["chat_template"] else None
    tokenizer = load_tokenizer(model)
    tokens: list[int] = []
    for text in read_texts(calibration["format"], path, template=template):
        tokens += tokenizer.encode(text).ids
    return pack(
        tokens,
        num_samples=calibration["num_samples"],
        max_seq_len=calibration["max_seq_len"],
        seed=calibration["seed"],
    )


def _chat_template(model: Path) -> Callable[[list[dict[str, str]]], str]:
    """The model's own chat template, as transformers renders it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    if not tokenizer.chat_template:
        raise SourceInvalid(
            f"`{model}` has no chat template",
            code="calibration.chat-template",
            hints=("set `quantize.calibration.chat_template: false`",),
        )
    return lambda messages: str(tokenizer.apply_chat_template(messages, tokenize=False))


def _check_vocabulary(tokens_NL: Tensor, vocab_size: int) -> None:
    highest = int(tokens_NL.max())
    if highest >= vocab_size:
        raise SourceInvalid(
            f"the tokenizer makes token {highest}, the embedding has {vocab_size} rows",
            code="calibration.tokenizer",
            hints=("use the `tokenizer.json` that belongs to this model",),
        )


def _int8_steps(
    job: Job,
    reader: CheckpointReader,
    config: Mapping[str, Any],
    linears: tuple[Linear, ...],
    state: BlockState,
) -> tuple[int, Step]:
    del config
    from lmi_build.numerics.rtn import round_to_nearest
    from lmi_build.quantizers.blockwise import pack_linear, read_finite

    blocks = list(dict.fromkeys(linear.block for linear in linears))
    params: Any = job.params
    state.resume()

    def step(index: int) -> Done:
        tensors: dict[str, Tensor] = {}
        rows: list[LedgerRow] = []
        for linear in linears:
            if linear.block != blocks[index]:
                continue
            weight_OI = read_finite(reader, f"{linear.name}.weight")
            quantized = round_to_nearest(
                weight_OI.float().T.contiguous(),
                bits=params["bits"],
                group_size=params["group_size"],
                sym=params["sym"],
            )
            packed, row = pack_linear(
                reader.entry(f"{linear.name}.weight"),
                quantized,
                slice(None),
                bits=params["bits"],
            )
            tensors |= packed
            rows.append(row)
        return tensors, tuple(rows), None

    return len(blocks), step
