"""
A recipe's lock as text: canonical TOML, one fact a line, read back strictly.

`gptq.yaml` has `gptq.lock` beside it. The same lock gives the same bytes, entries are
sorted, and every value has a line of its own, so that a version control system shows
and merges what changed. The last line says that nothing was cut off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.recipe.lock_reader import (
    END,
    LockText,
    bare,
    parse_lock,
    quoted,
    refuse,
)
from lmi_build.recipe.source import display_path
from lmi_build.values.lock import LOCK_SCHEMA, Lock, LockedData, LockedModel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.errors import Span

SUFFIX = ".lock"
# A model of ten thousand shards has a lock of two million bytes.
MAX_LOCK_BYTES = 16 << 20

_HEAD = (
    "# Written by `lmi-build lock`; keep it beside the recipe, and change it only so."
)


def lock_path(recipe: Path) -> Path:
    """Where a recipe file's lock lies: `recipe.yaml` has `recipe.lock`."""
    return recipe.with_suffix(SUFFIX)


def lock_text(lock: Lock) -> str:
    """A lock as text; equal locks give equal text."""
    lines = [_HEAD, f"schema = {quoted(LOCK_SCHEMA)}"]
    lines += [f"recipe = {quoted(lock.recipe)}"]
    lines += [f"lmi-build = {quoted(lock.lmi_build)}"]
    lines += [f"catalog = {quoted(lock.catalog)}"]
    lines += [f"architecture = {quoted(lock.architecture)}"]
    if lock.threads:
        lines.append(f"threads = {lock.threads}")
    if lock.jobs:
        lines.append(f"jobs = [{', '.join(quoted(job) for job in lock.jobs)}]")
    for model in sorted(lock.models, key=lambda entry: entry.name):
        lines += ["", "[[model]]", f"source = {quoted(model.source)}"]
        lines.append(f"revision = {quoted(model.revision)}")
        lines += ["trust_remote_code = true"] if model.trust_remote_code else []
        lines += _commit_and_files(model)
    for data in sorted(lock.calibration, key=lambda entry: entry.name):
        lines += ["", "[[calibration]]", f"dataset = {quoted(data.dataset)}"]
        lines += [f"num_tokens = {data.num_tokens}"] if data.num_tokens else []
        lines += _commit_and_files(data)
    lines += _table("images", lock.images)
    for scope, tools in sorted(lock.tools.items()):
        lines += _table(f"tools-of.{bare(scope)}" if scope else "tools", tools)
    for name, pins in sorted(lock.toolchains.items()):
        lines += _table(f"toolchain.{bare(name)}", pins)
    return "\n".join([*lines, "", END, ""])


def _commit_and_files(entry: LockedModel | LockedData) -> list[str]:
    lines = [f"commit = {quoted(entry.commit)}"] if entry.commit else []
    files = (
        f"  {{ path = {quoted(file.path)}, size = {file.size},"
        f" digest = {quoted(file.digest)} }},"
        for file in entry.files
    )
    return [*lines, "files = [", *files, "]"]


def _table(name: str, values: Mapping[str, str]) -> list[str]:
    if not values:
        return []
    rows = [f"{bare(key)} = {quoted(text)}" for key, text in sorted(values.items())]
    return ["", f"[{name}]", *rows]


def read_lock(path: Path) -> Lock | None:
    """
    Read a lock file; None where there is none.

    Raises:
        RecipeInvalid: `lock.unreadable`, `lock.conflict` or `lock.schema`.
    """
    file = display_path(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_LOCK_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or str(error)
        refuse(LockText(file, ""), "lock.unreadable", f"it cannot be read: {reason}")
    if len(data) > MAX_LOCK_BYTES:
        refuse(
            LockText(file, ""),
            "lock.unreadable",
            f"it has more than {MAX_LOCK_BYTES} bytes",
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = LockText(file, data[: error.start].decode("utf-8", "replace"))
        refuse(
            before,
            "lock.unreadable",
            f"byte 0x{data[error.start]:02x} is not UTF-8",
            line=len(before.lines),
        )
    return parse_lock(text, file)


def place(text: str, file: str, part: str, index: int, field: str) -> Span:
    """
    Where a lock says something of its n-th model or calibration entry.

    Args:
        text: The lock.
        file: What messages call it.
        part: `model` or `calibration`.
        index: Which entry, from 0.
        field: `commit`, or `file PATH`.
    """
    source = LockText(file, text)
    key = quoted(field.removeprefix("file ")) if " " in field else field
    return source.span(source.find(key, header=part, index=index))
