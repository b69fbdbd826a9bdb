"""The text of a lock read strictly: the first fault ends with its place and a fix."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping  # noqa: TC003 - a constant is annotated with it
from typing import TYPE_CHECKING, Any, NoReturn

from lmi_build.errors import Problem, RecipeInvalid, Span
from lmi_build.recipe.words import show
from lmi_build.text import did_you_mean
from lmi_build.values.lock import (
    EVERYWHERE,
    LOCK_SCHEMA,
    Lock,
    LockedData,
    LockedModel,
)
from lmi_build.values.model import FileFact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The last line, which says that nothing was cut off.
END = "# end of the lock"
_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z|git-sha1:[0-9a-f]{40}\Z")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_CONFLICT = re.compile(r"^(?:<{7} |={7}$|>{7} )", re.MULTILINE)
_AT = re.compile(r"\(at line (\d+), column (\d+)\)")

_KEYS = (
    "schema",
    "recipe",
    "lmi-build",
    "catalog",
    "architecture",
    "threads",
    "jobs",
    "model",
    "calibration",
    "images",
    "tools",
    "tools-of",
    "toolchain",
)
_ENTRY_KEYS: Mapping[str, tuple[str, ...]] = {
    "model": ("source", "revision", "trust_remote_code", "commit", "files"),
    "calibration": ("dataset", "num_tokens", "commit", "files"),
}


def quoted(text: str) -> str:
    """A TOML basic string; JSON escapes all that TOML does, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def bare(name: str) -> str:
    """A TOML key, quoted where it must be."""
    return name if _BARE.match(name) else quoted(name)


def parse_lock(text: str, file: str) -> Lock:
    """
    Read what `lock_text` wrote.

    Args:
        text: The file.
        file: What messages call it.

    Raises:
        RecipeInvalid: `lock.unreadable`, `lock.conflict` or `lock.schema`, with the
            place and the way out.
    """
    source = LockText(file, text)
    if match := _CONFLICT.search(text):
        line = text.count("\n", 0, match.start()) + 1
        refuse(source, "lock.conflict", "a merge left its conflict in it", line=line)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = _AT.search(str(error))
        said = _AT.sub("", str(error)).strip()
        line = int(at[1]) if at else len(source.lines)
        refuse(source, "lock.unreadable", f"it is not TOML: {said}", line=line)
    schema = document.pop("schema", None)
    if schema != LOCK_SCHEMA:
        refuse(
            source,
            "lock.schema",
            f"its schema is {show(str(schema))}, this version reads {LOCK_SCHEMA}",
            line=source.find("schema"),
        )
    if source.lines[-1:] != [END]:
        refuse(
            source,
            "lock.unreadable",
            f"its end is missing: the last line is not `{END}`",
            line=len(source.lines),
        )
    return _Reader(source).lock(document)


class LockText:
    """The lines of a lock, to find places in."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = [row.rstrip("\r") for row in text.rstrip().split("\n")]

    def span(self, line: int) -> Span:
        """The whole of a line, from 1, but for its indent."""
        row = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        lead = len(row) - len(row.lstrip())
        return Span(
            file=self.file,
            line=max(line, 1),
            column=lead + 1,
            length=max(1, len(row.strip())),
            source=row,
        )

    def find(self, key: str, *, header: str = "", index: int = 0) -> int:
        """The line of a key below the n-th header of a name, or the header's."""
        start = 0
        if header:
            wanted = {f"[{header}]", f"[[{header}]]"}
            at = [i for i, row in enumerate(self.lines) if row.strip() in wanted]
            start = at[index] if index < len(at) else 0
        for number in range(start + bool(header), len(self.lines)):
            row = self.lines[number]
            if row.startswith("["):
                break
            if row.startswith((f"{key} =", f"  {{ path = {key},")):
                return number + 1
        return start + 1


def refuse(source: LockText, code: str, message: str, *, line: int = 1) -> NoReturn:
    """
    End the reading of a lock, with the way out that fits the fault.

    Raises:
        RecipeInvalid: Always.
    """
    again = "write it anew with `lmi-build lock --upgrade all`"
    hint = {
        "lock.conflict": "take either side whole (`git checkout --ours` or `--theirs`),"
        f" then run `lmi-build lock`; or {again}",
        "lock.schema": f"use the version of lmi-build that wrote it, or {again}",
    }.get(code, f"restore the file from version control, or {again}")
    raise RecipeInvalid(
        (
            Problem(
                code=code,
                message=f"the lock cannot be used: {message}",
                hint=hint,
                span=source.span(line),
            ),
        )
    )


class _Reader:
    """Small readers of one document; the first fault ends with its place."""

    def __init__(self, source: LockText) -> None:
        self._source = source

    def _fail(
        self, message: str, key: str, *, header: str = "", index: int = 0
    ) -> NoReturn:
        line = self._source.find(key, header=header, index=index)
        refuse(self._source, "lock.unreadable", message, line=line)

    def lock(self, document: dict[str, Any]) -> Lock:
        rest = dict(document)
        self._nothing_else(rest, _KEYS)
        return Lock(
            recipe=self._text(rest, "recipe"),
            lmi_build=self._text(rest, "lmi-build"),
            catalog=self._text(rest, "catalog", _SHA256),
            architecture=self._text(rest, "architecture"),
            threads=self._count(rest, "threads"),
            jobs=self._jobs(rest),
            models=tuple(self._rows(rest, "model", self._model)),
            calibration=tuple(self._rows(rest, "calibration", self._data)),
            images=self._strings(rest, "images"),
            tools=self._tools(rest),
            toolchains=self._tables(rest, "toolchain"),
        )

    def _model(self, row: dict[str, Any], index: int) -> LockedModel:
        at: dict[str, Any] = {"header": "model", "index": index}
        trusted = row.pop("trust_remote_code", False)
        if not isinstance(trusted, bool):
            self._fail("`trust_remote_code` is not true", "trust_remote_code", **at)
        return LockedModel(
            source=self._text(row, "source", **at),
            revision=self._text(row, "revision", **at),
            trust_remote_code=trusted,
            commit=self._text(row, "commit", _COMMIT, missing="", **at),
            files=self._files(row, **at),
        )

    def _data(self, row: dict[str, Any], index: int) -> LockedData:
        at: dict[str, Any] = {"header": "calibration", "index": index}
        return LockedData(
            dataset=self._text(row, "dataset", **at),
            num_tokens=self._count(row, "num_tokens", **at),
            commit=self._text(row, "commit", _COMMIT, missing="", **at),
            files=self._files(row, **at),
        )

    def _rows(
        self,
        rest: dict[str, Any],
        name: str,
        read: Callable[[dict[str, Any], int], Any],
    ) -> Iterator[Any]:
        rows = rest.pop(name, [])
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            self._fail(f"`{name}` is not a list of tables", name)
        for index, row in enumerate(rows):
            self._nothing_else(row, _ENTRY_KEYS[name], header=name, index=index)
            yield read(dict(row), index)

    def _files(self, row: dict[str, Any], **at: Any) -> tuple[FileFact, ...]:
        files = row.pop("files", None)
        if not isinstance(files, list) or not files:
            self._fail("`files` is not a list of files", "files", **at)
        return tuple(self._file(entry, **at) for entry in files)

    def _file(self, entry: Any, **at: Any) -> FileFact:
        if not isinstance(entry, dict) or set(entry) != {"path", "size", "digest"}:
            self._fail("a file is not `{ path, size, digest }`", "files", **at)
        path, size, digest = entry["path"], entry["size"], entry["digest"]
        key = quoted(str(path))
        if not isinstance(path, str) or not path:
            self._fail(f"{show(str(path))} is not a path", "files", **at)
        if type(size) is not int or size < 0:
            self._fail(f"`size` of `{show(path)}` is {size!r}, not bytes", key, **at)
        if not isinstance(digest, str) or not _DIGEST.match(digest):
            self._fail(
                f"`digest` of `{show(path)}` is {show(str(digest))}, not `sha256:` and"
                " 64 or `git-sha1:` and 40 hexadecimal digits",
                key,
                **at,
            )
        return FileFact(path=path, size=size, digest=digest)

    def _text(
        self,
        row: dict[str, Any],
        key: str,
        pattern: re.Pattern[str] | None = None,
        *,
        missing: str | None = None,
        **at: Any,
    ) -> str:
        value = row.pop(key, missing)
        if value is None:
            self._fail(f"`{key}` is missing", key, **at)
        if not isinstance(value, str) or (value != missing and not value):
            self._fail(f"`{key}` is {value!r}, not text", key, **at)
        if pattern and value != missing and not pattern.match(value):
            form = "40 hexadecimal digits"
            if pattern is _SHA256:
                form = "`sha256:` and 64 hexadecimal digits"
            self._fail(f"`{key}` is {show(value)}, not {form}", key, **at)
        return value

    def _count(self, row: dict[str, Any], key: str, **at: Any) -> int:
        value = row.pop(key, 0)
        if type(value) is not int or value < 0:
            self._fail(f"`{key}` is {value!r}, not a number", key, **at)
        return value

    def _jobs(self, rest: dict[str, Any]) -> tuple[str, ...]:
        jobs = rest.pop("jobs", [])
        if not isinstance(jobs, list) or not all(isinstance(job, str) for job in jobs):
            self._fail("`jobs` is not a list of names", "jobs")
        return tuple(jobs)

    def _tools(self, rest: dict[str, Any]) -> dict[str, dict[str, str]]:
        everywhere = self._strings(rest, "tools")
        narrower = self._tables(rest, "tools-of")
        return {**({EVERYWHERE: everywhere} if everywhere else {}), **narrower}

    def _tables(self, rest: dict[str, Any], name: str) -> dict[str, dict[str, str]]:
        tables = rest.pop(name, {})
        if not isinstance(tables, dict):
            self._fail(f"`{name}` is not a table", name)
        left = dict(tables)
        return {key: self._strings(left, key, within=name) for key in tables}

    def _strings(
        self, rest: dict[str, Any], name: str, *, within: str = ""
    ) -> dict[str, str]:
        header = f"{within}.{bare(name)}" if within else name
        table = rest.pop(name, {})
        if not isinstance(table, dict):
            self._fail(f"`{header}` is not a table", name)
        for key, value in table.items():
            if not isinstance(value, str) or not value:
                told = f"`{key}` of `[{header}]` is {value!r}, not text"
                self._fail(told, bare(key), header=header)
        return dict(table)

    def _nothing_else(
        self, rest: dict[str, Any], known: tuple[str, ...], **at: Any
    ) -> None:
        for key in rest:
            if key in known:
                continue
            near = did_you_mean(key, known)
            hint = f"; did you mean `{near}`?" if near else ""
            self._fail(f"it has an unknown key `{show(key)}`{hint}", bare(key), **at)
