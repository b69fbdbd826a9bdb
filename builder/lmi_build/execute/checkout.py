"""Laying a built artifact out where the user wants it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from lmi_build.errors import UsageInvalid
from lmi_build.store import files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.digest import Digest
    from lmi_build.store.store import Store
    from lmi_build.values.result import StageResult

MANIFEST = "manifest.json"


def check_out(
    store: Store, results: Mapping[str, StageResult], dest: Path
) -> tuple[Path, Digest]:
    """
    Make `dest` the packed artifact, and put the verification report beside it.

    Raises:
        UsageInvalid: `dest` holds something that is not an artifact of ours, or cannot
            be written.
        DoesNotFit: `out.disk-full`.
    """
    package = results["package"]
    wanted = next(e.digest for e in package.entries if e.path == MANIFEST)
    try:
        if not _holds(dest, package, wanted, store):
            _replace(store, package, dest)
        report = results.get("verify")
        if report is not None:
            _place_report(store, report, dest)
    except OSError as error:
        raise files.explain_output_error(
            error, "writing the artifact", dest, option="--out DIR"
        ) from error
    return dest, wanted


def _holds(dest: Path, package: StageResult, wanted: Digest, store: Store) -> bool:
    """Whether `dest` is this artifact already, judged by names, sizes and manifest."""
    manifest = dest / MANIFEST
    if not manifest.is_file():
        return False
    if manifest.read_bytes() != store.blob_path(wanted).read_bytes():
        return False
    found = {
        path.relative_to(dest).as_posix(): path.stat().st_size
        for path in dest.rglob("*")
        if path.is_file()
    }
    return found == {entry.path: entry.size for entry in package.entries}


def _replace(store: Store, package: StageResult, dest: Path) -> None:
    foreign = dest.is_symlink() or (dest.exists() and not dest.is_dir())
    if foreign or (dest.exists() and any(dest.iterdir()) and not _is_ours(dest)):
        raise UsageInvalid(
            f"{dest} holds something that is not an artifact; it is left alone",
            code="out.foreign-folder",
            hints=("choose another folder: `--out DIR`", f"or empty {dest} yourself"),
        )
    dest.parent.mkdir(parents=True, exist_ok=True)
    fresh = dest.with_name(f".{dest.name}.{os.getpid()}.new")
    files.remove_tree(fresh)
    try:
        store.lay_out(package, fresh)
    except BaseException:
        with suppress(OSError):
            files.remove_tree(fresh)
        raise
    if dest.exists():
        old = dest.with_name(f".{dest.name}.{os.getpid()}.old")
        dest.replace(old)
        fresh.replace(dest)
        files.remove_tree(old)
    else:
        fresh.replace(dest)


def _is_ours(folder: Path) -> bool:
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    schema = document.get("schema", "") if isinstance(document, dict) else ""
    return str(schema).startswith("lmi-build/manifest/")


def _place_report(store: Store, report: StageResult, dest: Path) -> None:
    for entry in report.entries:
        data = store.blob_path(entry.digest).read_bytes()
        target = dest.with_name(f"{dest.name}.{entry.path}")
        if not (target.is_file() and target.read_bytes() == data):
            files.write_atomic(target, data)
