"""
Documents of calibration files, read one after another and never all at once.

What a row means, by the first of these that it has: a chat (`messages`,
`conversations`), a whole text (`text`), a question with its answer (`prompt` with
`completion` or `response`, `instruction` with `output` or `response`, `question` with
`answer` or `response`), a text alone (`prompt`, `content`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from lmi_build.errors import SourceInvalid, ToolMissing
from lmi_build.text import join_words
from lmi_build.units import MiB, format_bytes
from lmi_build.values.dataset import data_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    Message: TypeAlias = Mapping[str, str]
    Render: TypeAlias = Callable[[Sequence[Message]], str]

_CHATS = ("messages", "conversations")
_TEXT = "text"
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
)
_ALONE = ("prompt", "content")
# Goes with `instruction`, and means nothing without it.
_CONTEXT = "input"
KNOWN_COLUMNS = tuple(
    dict.fromkeys(
        (*_CHATS, _TEXT, *(n for pair in _PAIRS for n in pair), *_ALONE, _CONTEXT)
    )
)
# The speakers of the `conversations` layout, by the names chat templates know.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
# A longer text file is read in pieces of about so many characters.
_PIECE_CHARS = 1 << 18
# A JSON array cannot be read in pieces.
_MAX_ARRAY_BYTES = 256 * MiB
# A quoted field of a CSV file may be a whole document.
_MAX_FIELD_CHARS = 1 << 27
_MAX_SHOWN_COLUMNS = 12
_PARQUET_ROWS = 256


@dataclass(kw_only=True, slots=True)
class Tally:
    """
    What was met while reading.

    Args:
        num_documents: Documents with text.
        num_empty: Rows and files whose text is empty, null or NaN; they are left out.
    """

    num_documents: int = 0
    num_empty: int = 0


def read_documents(
    files: Sequence[tuple[Path, str]], tally: Tally, *, render: Render | None = None
) -> Iterator[str]:
    """
    Every document of some files, in order, lazily.

    Args:
        files: Paths, each with its name in messages.
        tally: Counts as documents are read.
        render: Renders a chat to text; None joins what is said by line ends.

    Raises:
        SourceInvalid: `calibration.unreadable` or `.row`.
        ToolMissing: `calibration.parquet`.
    """
    for path, label in files:
        for text in _documents(path, label, render):
            if text.strip():
                tally.num_documents += 1
                yield text
            else:
                tally.num_empty += 1


def _documents(path: Path, label: str, render: Render | None) -> Iterator[str]:
    kind = data_format(path.name)
    if kind == "text":
        with _reading(label), io.TextIOWrapper(_open(path), "utf-8-sig") as stream:
            for piece in _pieces(stream):
                yield piece if render is None else render([_said("user", piece)])
        return
    rows = {
        "jsonl": _jsonl_rows,
        "json": _json_rows,
        "csv": _csv_rows,
        "parquet": _parquet_rows,
    }
    for where, row in rows[str(kind)](path, label):
        yield row_text(row, where, render=render)


@contextmanager
def _reading(label: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _unreadable(label, str(error)) from error


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast("BinaryIO", gzip.GzipFile(path))
    return path.open("rb")


def _pieces(stream: io.TextIOWrapper) -> Iterator[str]:
    """The text, cut after paragraphs, lines or words where it is long."""
    rest = ""
    while more := stream.read(_PIECE_CHARS):
        rest += more
        if len(rest) < _PIECE_CHARS:
            continue
        cut = next(
            (at for mark in ("\n\n", "\n", " ") if (at := rest.rfind(mark)) > 0), -1
        )
        if cut > 0:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _jsonl_rows(path: Path, label: str) -> Iterator[tuple[str, Any]]:
    with _reading(label), _open(path) as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{label}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _unreadable(where, f"it is not UTF-8 ({error})") from error
            if line.strip():
                yield where, _json(line, where)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad_row(where, f"it is not JSON ({error})") from error


def _json_rows(path: Path, label: str) -> Iterator[tuple[str, Any]]:
    """An array of rows, or one row a line under another name."""
    with _reading(label), _open(path) as stream:
        head = stream.read(64).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
        if not head.startswith("["):
            yield from _jsonl_rows(path, label)
            return
    with _reading(label), _open(path) as stream:
        data = stream.read(_MAX_ARRAY_BYTES + 1)
    if len(data) > _MAX_ARRAY_BYTES:
        raise _unreadable(
            label,
            "it is one JSON array of more than"
            f" {format_bytes(_MAX_ARRAY_BYTES)}, which would have to be read at once;"
            " write one row a line (.jsonl)",
        )
    with _reading(label):
        text = data.decode("utf-8-sig")
    for number, row in enumerate(_json(text, label), start=1):
        yield f"{label}: row {number}", row


def _csv_rows(path: Path, label: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(_MAX_FIELD_CHARS)
    with (
        _reading(label),
        io.TextIOWrapper(_open(path), "utf-8-sig", newline="") as stream,
    ):
        reader = csv.DictReader(stream, strict=True)
        try:
            _check_columns(reader.fieldnames or (), label)
            for row in reader:
                where = f"{label}:{reader.line_num}"
                if row.pop(None, None) is not None:
                    raise _bad_row(where, "it has more fields than the header")
                yield where, row
        except csv.Error as error:
            raise _bad_row(f"{label}:{reader.line_num}", str(error)) from error


def _parquet_rows(path: Path, label: str) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ToolMissing(
            f"reading `{label}` needs the package `pyarrow`",
            code="calibration.parquet",
            hints=("pip install 'lmi-build[parquet]'", "or convert it to JSONL"),
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            _check_columns(columns, label)
            # Others may be large: pictures, token ids, embeddings.
            wanted = [name for name in columns if name in KNOWN_COLUMNS]
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{label}: row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(label, str(error)) from error


def _check_columns(columns: Sequence[str], label: str) -> None:
    if not _is_known(columns):
        raise _no_text(label, columns)


def _is_known(columns: Sequence[str] | Mapping[str, Any]) -> bool:
    whole = (*_CHATS, _TEXT, *_ALONE)
    return any(name in columns for name in whole) or any(
        all(name in columns for name in pair) for pair in _PAIRS
    )


def row_text(row: Any, where: str, *, render: Render | None = None) -> str:
    """
    The text of one row; empty when the row has a known column with nothing in it.

    Args:
        row: As JSON gave it.
        where: File and line, for messages.
        render: Renders a chat to text; a row without roles is one user's message.

    Raises:
        SourceInvalid: `calibration.row`.
    """
    if not isinstance(row, dict):
        raise _bad_row(where, f"it is {_kind(row)}, not an object")
    said = _said_in(row, where)
    if isinstance(said, str):
        if render is None or not said.strip():
            return said
        return render([_said("user", said)])
    if not any(message["content"].strip() for message in said):
        return ""
    if render is not None:
        return render(said)
    return "\n".join(message["content"] for message in said)


def _said_in(row: Mapping[str, Any], where: str) -> str | list[Message]:
    for name in _CHATS:
        if not _is_missing(row.get(name)):
            return _messages(row[name], name, where)
    if not _is_missing(row.get(_TEXT)):
        return _string(row[_TEXT], _TEXT, where)
    for asked, answered in _PAIRS:
        if not _is_missing(row.get(asked)) and not _is_missing(row.get(answered)):
            return _pair(row, asked, answered, where)
    for name in _ALONE:
        if not _is_missing(row.get(name)):
            if isinstance(row[name], list):
                return _messages(row[name], name, where)
            return _string(row[name], name, where)
    if not _is_known(row):
        raise _no_text(where, tuple(row))
    return ""


def _is_missing(value: Any) -> bool:
    """Null, or the NaN that tables write for null."""
    return value is None or (isinstance(value, float) and value != value)  # noqa: PLR0124


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise _bad_row(where, f"`{name}` is {_kind(value)}, not text")
    return value


def _pair(
    row: Mapping[str, Any], asked: str, answered: str, where: str
) -> list[Message]:
    if isinstance(row[asked], list) and isinstance(row[answered], list):
        return _messages([*row[asked], *row[answered]], asked, where)
    question = _string(row[asked], asked, where)
    context = row.get(_CONTEXT) if asked == "instruction" else None
    if not _is_missing(context) and str(context).strip():
        question = f"{question}\n\n{_string(context, _CONTEXT, where)}"
    answer = _string(row[answered], answered, where)
    return [_said("user", question), _said("assistant", answer)]


def _messages(value: Any, name: str, where: str) -> list[Message]:
    problem = f"`{name}` is not a list of role and content"
    if not isinstance(value, list):
        raise _bad_row(where, problem)
    found = []
    for item in value:
        if not isinstance(item, dict) or not {"content", "value"} & set(item):
            raise _bad_row(where, problem)
        content = item["content"] if "content" in item else item["value"]
        if isinstance(content, list):
            # Parts of several kinds; only those of text can be read here.
            texts = [p.get("text") for p in content if isinstance(p, dict)]
            content = "".join(text for text in texts if isinstance(text, str))
        if not _is_missing(content) and not isinstance(content, str):
            raise _bad_row(where, problem)
        role = str(item.get("role") or item.get("from") or "user")
        found.append(
            _said(_ROLES.get(role, role), content if isinstance(content, str) else "")
        )
    return found


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _no_text(where: str, columns: Sequence[str]) -> SourceInvalid:
    shown = ", ".join(f"`{name}`" for name in columns[:_MAX_SHOWN_COLUMNS]) or "none"
    more = "" if len(columns) <= _MAX_SHOWN_COLUMNS else ", ..."
    return SourceInvalid(
        f"{where}: no column that is known to hold text; it has {shown}{more}",
        code="calibration.row",
        hints=(
            f"rename the column that holds it to {join_words(('text', 'messages'))}",
            "known are " + join_words(KNOWN_COLUMNS, last="and"),
        ),
    )


def _bad_row(where: str, detail: str) -> SourceInvalid:
    return SourceInvalid(
        f"{where}: the calibration row cannot be used: {detail}",
        code="calibration.row",
        hints=('write rows such as {"text": "..."}',),
    )


def _unreadable(where: str, detail: str) -> SourceInvalid:
    return SourceInvalid(
        f"calibration data `{where}` cannot be read: {detail}",
        code="calibration.unreadable",
        hints=("check `quantize.calibration.dataset`; text must be UTF-8",),
    )
