"""Rewrite a safetensors file in another float type, streaming."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lmi_build.checkpoint.header import read_header
from lmi_build.errors import SourceInvalid
from lmi_build.sources.copy_files import Hasher, changed
from lmi_build.sources.local import read_local
from lmi_build.sources.shards import tensor_bytes, write_shard
from lmi_build.values.model import TensorFact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.checkpoint.header import TensorEntry
    from lmi_build.sources.copy_files import OnBytes

_FLOATS = ("float64", "float32", "float16", "bfloat16")
# A multiple of every element's size.
_RUN_BYTES = 8 << 20


def recast_shard(
    source: Path,
    target: Path,
    *,
    dtype: str,
    digest: str,
    size: int,
    on_bytes: OnBytes,
) -> int:
    """
    Cast the float tensors of one file; others stay as they are.

    The source is read once, in order, and hashed on the way.

    Args:
        source: A safetensors file.
        target: The file to write.
        dtype: A float type.
        digest: What the source was planned as.
        size: Its bytes.
        on_bytes: Told of source bytes read.

    Returns:
        Bytes of all tensors written.

    Raises:
        SourceInvalid: `source.changed` or `source.changed`.
    """
    if source.stat().st_size != size:
        raise changed(
            source.name,
            expected=f"{size:,} bytes",
            found=f"{source.stat().st_size:,} bytes",
        )
    header = read_header(source)
    facts = [_cast_fact(entry, dtype, target.name) for entry in header.tensors.values()]
    hasher = Hasher(digest, size)
    hasher.update(read_local(source, 0, header.num_bytes))
    on_bytes(header.num_bytes)

    def chunks(fact: TensorFact) -> Iterator[bytes]:
        tensor = header.tensors[fact.name]
        yield from _cast_chunks(source, tensor, fact, hasher, on_bytes)

    write_shard(target, facts, chunks)
    if not hasher.matches:
        raise changed(source.name, expected=digest, found=hasher.value)
    return sum(tensor_bytes(fact) for fact in facts)


def _cast_fact(entry: TensorEntry, dtype: str, file: str) -> TensorFact:
    wanted = dtype if entry.dtype in _FLOATS else entry.dtype
    return TensorFact(name=entry.name, dtype=wanted, shape=entry.shape, file=file)


def _cast_chunks(
    source: Path,
    tensor: TensorEntry,
    fact: TensorFact,
    hasher: Hasher,
    on_bytes: OnBytes,
) -> Iterator[bytes]:
    from lmi_build.sources.cast import cast_bytes

    for start in range(tensor.begin, tensor.end, _RUN_BYTES):
        count = min(_RUN_BYTES, tensor.end - start)
        data = read_local(source, start, count)
        if len(data) != count:
            raise SourceInvalid(
                f"`{source.name}` ended inside tensor `{fact.name}`",
                code="source.changed",
                hints=("it changed while it was read: run the build again",),
            )
        hasher.update(data)
        on_bytes(count)
        if tensor.dtype == fact.dtype:
            yield data
        else:
            yield cast_bytes(data, source=tensor.dtype, target=fact.dtype)


def recast_config(path: Path, *, dtype: str) -> None:
    """State the new type in `config.json`, in whichever spelling it has."""
    document = json.loads(path.read_text(encoding="utf-8"))
    for part in (document, document.get("text_config")):
        if not isinstance(part, dict):
            continue
        spelling = "dtype" if "dtype" in part else "torch_dtype"
        if part is document or spelling in part:
            part[spelling] = dtype
    text = json.dumps(document, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def recast_index(path: Path, *, total: int) -> None:
    """State the new size of the weights in their index."""
    document = json.loads(path.read_text(encoding="utf-8"))
    document["metadata"] = {**(document.get("metadata") or {}), "total_size": total}
    text = json.dumps(document, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
