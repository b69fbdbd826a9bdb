"""
Make a Hugging Face folder of a GGUF file.

Tensors are dequantized in runs of rows and streamed to disk, so memory holds one run,
whatever the size of the model. Dequantization is the `gguf` package's, in float32;
one rounding to the wanted type follows.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid, ToolMissing
from lmi_build.sources.gguf import TENSOR_TYPES, read_gguf_header
from lmi_build.sources.gguf_model import (
    config_from_gguf,
    hf_name,
    rows_are_interleaved,
    token_ids,
)
from lmi_build.sources.gguf_tokenizer import (
    TOKENIZER_ARRAYS,
    check_tokenizer,
    write_tokenizer,
)
from lmi_build.sources.local import read_local
from lmi_build.sources.shards import (
    SHARD_BYTES,
    plan_shards,
    tensor_bytes,
    write_index,
    write_shard,
)
from lmi_build.values.model import TensorFact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from lmi_build.sources.gguf import GgufHeader, GgufTensor

# Elements dequantized at once: 8 MiB of float32, a few times that inside `gguf`.
_RUN_ELEMENTS = 2 << 20


def convert_gguf(
    path: Path,
    out: Path,
    *,
    dtype: str,
    progress: Callable[[int, int], None],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """
    Write configuration, tokenizer and weights.

    Args:
        path: The GGUF file; its digest was checked.
        out: Folder to fill.
        dtype: Type of the weights.
        progress: Called with bytes of weights written and their total.
        shard_bytes: Most bytes of one weight file.

    Raises:
        SourceInvalid: The file is broken.
        Unsupported: It cannot be rebuilt exactly.
        ToolMissing: The `gguf` or `tokenizers` package is not installed.
    """
    _check_tools()
    header = read_gguf_header(
        lambda offset, count: read_local(path, offset, count),
        size=path.stat().st_size,
        name=path.name,
        keep=TOKENIZER_ARRAYS,
    )
    check_tokenizer(header.metadata, file=path.name)
    config = config_from_gguf(header, dtype=dtype, file=path.name)
    write_tokenizer(
        header.metadata,
        out,
        max_len=config["max_position_embeddings"],
        file=path.name,
    )
    _write_json(out / "config.json", config)
    ids = token_ids(header.metadata)
    ids.pop("unk_token_id", None)
    _write_json(out / "generation_config.json", {"_from_model_config": True, **ids})
    _write_readme(out / "README.md", header)
    _write_weights(
        path,
        header,
        out,
        config=config,
        progress=progress,
        shard_bytes=shard_bytes,
    )


def _check_tools() -> None:
    try:
        import gguf
        import tokenizers
    except ImportError as error:
        raise ToolMissing(
            f"a GGUF file needs the package `{error.name}`, which is not installed",
            code="source.tool-missing",
            hints=("install it: `pip install 'lmi-build[gguf]'`",),
        ) from error
    del gguf, tokenizers


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _write_readme(path: Path, header: GgufHeader) -> None:
    """A model card of what the file itself states, licence first."""
    about = header.metadata
    lines = []
    licence = about.get("general.license")
    if isinstance(licence, str):
        lines += ["---", f"license: {json.dumps(licence)}", "---", ""]
    lines += [f"# {_one_line(about.get('general.name', 'Model'))}", ""]
    facts = {
        "Organization": "general.organization",
        "License": "general.license",
        "License text": "general.license.link",
        "Source": "general.source.url",
        "Repository": "general.repo_url",
    }
    lines += [
        f"- {title}: {_one_line(about[key])}"
        for title, key in facts.items()
        if isinstance(about.get(key), str)
    ]
    lines += ["", "Weights were dequantized from a GGUF file.", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _write_weights(
    path: Path,
    header: GgufHeader,
    out: Path,
    *,
    config: dict[str, Any],
    progress: Callable[[int, int], None],
    shard_bytes: int,
) -> None:
    dtype = config["torch_dtype"]
    stored = {str(hf_name(tensor.name)): tensor for tensor in header.tensors}
    facts = [
        TensorFact(name=name, dtype=dtype, shape=tensor.shape, file="")
        for name, tensor in stored.items()
    ]
    total = sum(tensor_bytes(fact) for fact in facts)
    done = 0
    architecture = header.metadata["general.architecture"]

    def chunks(fact: TensorFact) -> Iterator[bytes]:
        nonlocal done
        tensor = stored[fact.name]
        heads = 0
        if rows_are_interleaved(architecture, tensor.name):
            which = "key_value" if ".attn_k." in tensor.name else "attention"
            heads = config[f"num_{which}_heads"]
        for chunk in _tensor_chunks(path, tensor, dtype=dtype, heads=heads):
            yield chunk
            done += len(chunk)
            progress(done, total)

    shards = list(plan_shards(facts, shard_bytes=shard_bytes))
    for name, group in shards:
        write_shard(out / name, group, chunks)
    if len(shards) > 1:
        write_index(out, shards)


def _tensor_chunks(
    path: Path, tensor: GgufTensor, *, dtype: str, heads: int
) -> Iterator[bytes]:
    """A tensor's bytes in its final type; `heads` > 0 undoes the interleaving."""
    from lmi_build.sources.cast import floats_to_bytes

    width = tensor.shape[-1]
    num_rows = 1
    for size in tensor.shape[:-1]:
        num_rows *= size
    is_vector = len(tensor.shape) == 1
    head_rows = tensor.shape[0] // heads if heads else 1
    # The interleaving stays within one head, so a run is a whole number of heads.
    unit = 1 if is_vector else head_rows
    run = max(_RUN_ELEMENTS // (width * unit), 1) * unit
    row_bytes = tensor.num_bytes // num_rows
    for first in range(0, num_rows, run):
        count = min(run, num_rows - first)
        data = read_local(path, tensor.offset + first * row_bytes, count * row_bytes)
        if len(data) != count * row_bytes:
            raise SourceInvalid(
                f"`{path.name}` ended inside tensor `{tensor.name}`",
                code="source.bad-gguf",
                hints=("it changed while it was read: run the build again",),
            )
        values = _dequantize(data, tensor.type_name, count)
        if heads:
            values = values.reshape(-1, 1 if is_vector else width)
            values = _undo_interleaving(values, head_rows)
        yield floats_to_bytes(values, dtype)


def _dequantize(data: bytes, type_name: str, rows: int) -> NDArray[Any]:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kinds = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
    raw = np.frombuffer(data, np.uint8).reshape(rows, -1)
    # A damaged scale may be infinite; the file's digest says whether it was damaged.
    with np.errstate(all="ignore"):
        values: NDArray[Any] = dequantize(raw, GGMLQuantizationType(kinds[type_name]))
    return values


def _undo_interleaving(rows: NDArray[Any], head_rows: int) -> NDArray[Any]:
    """
    Put the halves of each head back one after the other.

    ggml rotates neighbouring rows (0, 1), (2, 3)...; Hugging Face's Llama rotates row
    i with row i + head_dim / 2. The converter interleaves the halves; this splits
    them again.
    """
    num_rows, width = rows.shape
    pairs = rows.reshape(num_rows // head_rows, head_rows // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(num_rows, width)
