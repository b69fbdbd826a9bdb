"""
Calibration text: where it comes from, what it is called in a key, how it is packed.

Light at import: the planner calls `calibration_digest`, only the worker tokenizes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest, digest_bytes, digest_file
from lmi_build.errors import SourceInvalid, ToolMissing, Unsupported
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmi_build.values.recipe import CalibrationSpec

PYTHON_DOCS = "builtin:python-docs"
TEXT_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)
SUFFIXES = TEXT_SUFFIXES + JSONL_SUFFIXES + PARQUET_SUFFIXES
# Columns of a row that may hold its text, first match wins.
TEXT_FIELDS = ("text", "prompt", "content")
DOCUMENT_SEPARATOR = "\n\n"


def builtin_texts(*, held_out: bool) -> tuple[str, ...]:
    """
    The documentation topics that ship with Python itself.

    Sorted by name, topics with an even index calibrate and those with an odd index
    are held out, so that what is measured was never calibrated on. A few topics have
    the same text under two names; one that calibrates is never held out.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    calibration = tuple(topics[name] for name in names[::2])
    if not held_out:
        return calibration
    return tuple(
        topics[name] for name in names[1::2] if topics[name] not in calibration
    )


def held_out_text() -> str:
    """Text for comparing models, never used to calibrate by `builtin:python-docs`."""
    return DOCUMENT_SEPARATOR.join(builtin_texts(held_out=True))


def calibration_path(spec: CalibrationSpec) -> Path | None:
    """
    The local file of a data set, or None for a built-in one.

    Args:
        spec: Of the recipe; a relative path counts from the current folder.

    Raises:
        Unsupported: `calibration.dataset`, for a kind not offered here.
    """
    if spec.dataset == PYTHON_DOCS:
        return None
    if "://" in spec.dataset or spec.dataset.startswith(("hub:", "builtin:")):
        raise Unsupported(
            f"calibration data set `{spec.dataset}` is of a kind not offered",
            code="calibration.dataset",
            hints=(f"use `{PYTHON_DOCS}` or a file ending in {join_words(SUFFIXES)}",),
        )
    path = Path(spec.dataset).expanduser().absolute()
    if path.suffix.lower() not in SUFFIXES:
        raise Unsupported(
            f"calibration file `{spec.dataset}` ends in `{path.suffix}`",
            code="calibration.dataset",
            hints=(f"name a file ending in {join_words(SUFFIXES)}",),
        )
    return path


def calibration_digest(spec: CalibrationSpec) -> Digest:
    """
    Name the calibration text by its content, without tokenizing it.

    Args:
        spec: Of the recipe.

    Raises:
        Unsupported: `calibration.dataset`.
        SourceInvalid: `calibration.unreadable`.
    """
    path = calibration_path(spec)
    if path is None:
        texts = builtin_texts(held_out=False)
        return digest_bytes(DOCUMENT_SEPARATOR.join(texts).encode())
    try:
        return digest_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_texts(dataset: str, path: Path | None, *, template: Any = None) -> list[str]:
    """
    Read every document of a data set, in order.

    Args:
        dataset: As the recipe names it.
        path: Its file, unless it is built in.
        template: Renders a list of chat messages to text; None joins their contents.

    Raises:
        SourceInvalid: `calibration.unreadable`, `.row` or `.empty`.
        ToolMissing: `calibration.parquet`.
    """
    if path is None:
        return list(builtin_texts(held_out=False))
    try:
        suffix = path.suffix.lower()
        if suffix in TEXT_SUFFIXES:
            texts = [path.read_text("utf-8")]
        elif suffix in JSONL_SUFFIXES:
            texts = [_row_text(row, at, template) for at, row in _jsonl_rows(path)]
        else:
            texts = [_row_text(row, at, template) for at, row in _parquet_rows(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise SourceInvalid(
            f"calibration data set `{dataset}` holds no text",
            code="calibration.empty",
            hints=(f"fill the file, or use `{PYTHON_DOCS}`",),
        )
    return texts


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                where = f"{path.name}:{number}"
                try:
                    yield where, json.loads(line)
                except ValueError as error:
                    raise _bad_row(where, f"it is not JSON ({error})") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ToolMissing(
            f"reading `{path.name}` needs the package `pyarrow`",
            code="calibration.parquet",
            hints=("pip install pyarrow", "or convert the file to JSONL"),
        ) from error
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path.name}: row {number}", row


def _row_text(row: Any, where: str, template: Any) -> str:
    if not isinstance(row, dict):
        raise _bad_row(where, f"it is a {type(row).__name__}, not an object")
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(
            isinstance(message, dict) and isinstance(message.get("content"), str)
            for message in messages
        ):
            raise _bad_row(where, "`messages` is not a list of role and content")
        if template is not None:
            return str(template(messages))
        return "\n".join(message["content"] for message in messages)
    for name in TEXT_FIELDS:
        if isinstance(row.get(name), str):
            text = row[name]
            if template is not None:
                return str(template([{"role": "user", "content": text}]))
            return str(text)
    raise _bad_row(where, f"it has none of {join_words(('messages', *TEXT_FIELDS))}")


def _bad_row(where: str, detail: str) -> SourceInvalid:
    return SourceInvalid(
        f"{where}: the calibration row cannot be used: {detail}",
        code="calibration.row",
        hints=('write rows such as {"text": "..."}',),
    )


def _unreadable(path: Path, error: Exception) -> SourceInvalid:
    return SourceInvalid(
        f"calibration file `{path}` cannot be read: {error}",
        code="calibration.unreadable",
        hints=("check `quantize.calibration.dataset`; the file must be UTF-8 text",),
    )


def load_tokenizer(folder: Path) -> Any:
    """
    The model's own tokenizer.

    Raises:
        SourceInvalid: `calibration.tokenizer`.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise SourceInvalid(
            f"`{path}` is not a tokenizer: {error}",
            code="calibration.tokenizer",
            hints=("fetch the model with its `tokenizer.json`",),
        ) from error


def pack(
    tokens: Sequence[int], *, num_samples: int, max_seq_len: int, seed: int
) -> list[list[int]]:
    """
    Cut a token stream into windows and draw some of them.

    Args:
        tokens: The whole data set, document after document.
        num_samples: Windows to draw.
        max_seq_len: Tokens of a window.
        seed: Of the draw.

    Returns:
        The windows drawn, in the order of the text.

    Raises:
        SourceInvalid: `calibration.too-short`, with both numbers.
    """
    num_windows = len(tokens) // max_seq_len
    if num_windows < num_samples:
        longest = len(tokens) // num_samples
        raise SourceInvalid(
            f"calibration needs {num_samples} x {max_seq_len} = "
            f"{num_samples * max_seq_len} tokens, the data set has {len(tokens)}",
            code="calibration.too-short",
            hints=(
                f"lower `quantize.calibration.num_samples` to {num_windows}",
                f"lower `quantize.calibration.max_seq_len` to {longest}",
            ),
        )
    drawn = sorted(random.Random(seed).sample(range(num_windows), num_samples))  # noqa: S311
    return [list(tokens[at * max_seq_len : (at + 1) * max_seq_len]) for at in drawn]
