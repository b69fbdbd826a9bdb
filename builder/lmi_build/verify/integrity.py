"""
Whether an artifact's files are the ones its manifest names, and load as they are.

Light: standard library only, so that a folder or a fetched prefix can be checked
without any toolchain. Nothing of the artifact is executed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lmi_build.digest import digest_file
from lmi_build.errors import LmiBuildError, Problem, VerifyFailed
from lmi_build.package.properties import PROPERTIES_NAME, parse_properties
from lmi_build.values.manifest import MANIFEST_NAME, RECORD_NAMES, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.digest import JSONValue
    from lmi_build.values.manifest import FileEntry

_FETCH_AGAIN = "fetch the artifact again, or build it again"
# SHA-256 runs outside the interpreter's lock; more threads than this wait for disks.
_NUM_HASH_THREADS = 4
# A manifest of a thousand files has 150 KB; reading more than this is an attack.
_MAX_MANIFEST_BYTES = 64 << 20
_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9_,-]+\])?==[^\s;=*]+\Z")
# Files at the root that make DJL Serving choose another engine, or compile.
_MISLEADING_ROOT_FILES = ("config.json", "config.pbtxt", "metadata.yaml")
_NUM_SHOWN = 8


def read_manifest(root: Path) -> Manifest:
    """
    Read the manifest of an artifact's folder.

    Raises:
        VerifyFailed: `verify.not-an-artifact`, `verify.manifest-missing` or a code
            of `Manifest.from_bytes`.
    """
    if not root.is_dir():
        raise VerifyFailed(
            f"{root} is not a folder",
            code="verify.not-an-artifact",
            hints=("give the folder that holds manifest.json",),
        )
    path = root / MANIFEST_NAME
    if not path.is_file():
        raise VerifyFailed(
            f"{root} has no {MANIFEST_NAME}",
            code="verify.manifest-missing",
            hints=("it is written last: the copy may be incomplete; fetch it again",),
        )
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise VerifyFailed(
            f"{MANIFEST_NAME} has {path.stat().st_size} bytes, at most"
            f" {_MAX_MANIFEST_BYTES} are read",
            code="verify.manifest-unreadable",
            hints=(_FETCH_AGAIN,),
        )
    return Manifest.from_bytes(path.read_bytes())


def check_tree(root: Path, *, hashes: bool = True) -> tuple[Problem, ...]:
    """
    Every fault of an artifact's folder, sorted by path; empty when it is whole.

    Args:
        root: The artifact.
        hashes: Whether content is read; without, a file of the right size passes.
    """
    try:
        manifest = read_manifest(root)
    except LmiBuildError as error:
        hint = error.hints[0] if error.hints else ""
        return (Problem(code=error.code, message=error.message, hint=hint),)
    found, problems = _walk(root)
    problems.extend(_listing_problems(manifest, found))
    present = [entry for entry in manifest.files if entry.path in found]
    with ThreadPoolExecutor(_NUM_HASH_THREADS) as pool:
        checked = pool.map(
            lambda entry: _content_problem(root, entry, hashes=hashes), present
        )
        problems.extend(problem for problem in checked if problem is not None)
    broken = {problem.path for problem in problems}
    problems.extend(
        problem
        for problem in _meaning_problems(root, manifest, found)
        if problem.path not in broken
    )
    return tuple(sorted(problems, key=lambda problem: (problem.path, problem.code)))


def refuse_if_damaged(root: Path, *, hashes: bool = True) -> Manifest:
    """
    Read and check an artifact's folder.

    Args:
        root: The artifact.
        hashes: As for `check_tree`.

    Raises:
        VerifyFailed: With the code of the first fault and a line for each.
    """
    problems = check_tree(root, hashes=hashes)
    if problems:
        lines = [problem.message for problem in problems[:_NUM_SHOWN]]
        if len(problems) > _NUM_SHOWN:
            lines.append(f"and {len(problems) - _NUM_SHOWN} more")
        raise VerifyFailed(
            "\n  ".join(["the artifact is not what its manifest says:", *lines])
            if len(lines) > 1
            else lines[0],
            code=problems[0].code,
            hints=tuple(dict.fromkeys(p.hint for p in problems if p.hint)),
        )
    return read_manifest(root)


def _walk(root: Path) -> tuple[set[str], list[Problem]]:
    """Regular files by relative path; links and devices are problems."""
    found: set[str] = set()
    problems: list[Problem] = []
    for folder, folders, names in os.walk(root):
        for name in sorted(folders + names):
            path = os.path.join(folder, name)  # noqa: PTH118 - os.walk gives text
            relative = os.path.relpath(path, root).replace(os.sep, "/")
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                found.add(relative)
            elif not stat.S_ISDIR(mode):
                kind = "symbolic link" if stat.S_ISLNK(mode) else "special file"
                problems.append(
                    Problem(
                        code="verify.not-a-regular-file",
                        message=f"{relative} is a {kind}",
                        path=relative,
                        hint="an artifact holds only regular files: " + _FETCH_AGAIN,
                    )
                )
    return found, problems


def _listing_problems(manifest: Manifest, found: set[str]) -> Iterator[Problem]:
    listed = {entry.path for entry in manifest.files}
    allowed = listed | {MANIFEST_NAME} | RECORD_NAMES
    for path in sorted(listed - found):
        yield Problem(
            code="verify.file-missing",
            message=f"{path} is missing",
            path=path,
            hint=_FETCH_AGAIN,
        )
    for path in sorted(found - allowed):
        yield Problem(
            code="verify.file-extra",
            message=f"{path} is not in the manifest",
            path=path,
            hint=f"remove {path}; what is not named may not be served",
        )


def _content_problem(root: Path, entry: FileEntry, *, hashes: bool) -> Problem | None:
    path = root / entry.path
    try:
        size = path.stat().st_size
        if size != entry.size:
            message = f"{entry.path} has {size} bytes, the manifest says {entry.size}"
            return _changed(entry.path, message)
        digest = digest_file(path) if hashes else entry.digest
    except OSError as error:
        return _changed(entry.path, f"{entry.path} cannot be read: {error.strerror}")
    if digest == entry.digest:
        return None
    return _changed(
        entry.path, f"{entry.path} is {digest}, the manifest says {entry.digest}"
    )


def _changed(path: str, message: str) -> Problem:
    return Problem(
        code="verify.file-changed", message=message, path=path, hint=_FETCH_AGAIN
    )


def _meaning_problems(
    root: Path, manifest: Manifest, found: set[str]
) -> Iterator[Problem]:
    """Whether the files agree with each other and load without compiling."""
    if manifest.layout != "djl-lmi":
        yield _disagree(MANIFEST_NAME, f"layout `{manifest.layout}` is not known here")
        return
    if PROPERTIES_NAME in found:
        yield from _properties_problems(root, manifest)
    if "lmi_build.json" in found:
        yield from _settings_problems(root, manifest)
    if "requirements.txt" in found:
        yield from _requirements_problems(root)
    serving = manifest.serving
    own_handler = bool(serving.get("handler"))
    tokenizer = _inside(serving.get("tokenizer_dir", "."), "tokenizer.json")
    needed = ("model.py", "requirements.txt") if own_handler else ()
    # What is not served, such as a checkpoint, has nothing to say to a server.
    told = (PROPERTIES_NAME,) if serving.get("properties") else ()
    for name in (*told, *needed, tokenizer):
        if all(entry.path != name for entry in manifest.files):
            yield _disagree(name, f"the manifest names no {name}; it cannot be served")
    # A backend that the container serves itself says what a folder must look like.
    for name in _MISLEADING_ROOT_FILES if own_handler else ():
        if name in found:
            yield _disagree(
                name, f"{name} at the root makes DJL Serving load something else"
            )
    engine_dir = str(serving.get("engine_dir"))
    prefix = _inside(engine_dir, "")
    if not any(path.startswith(prefix) for path in found):
        yield _disagree(engine_dir, f"{engine_dir}/ holds no engine")


def _inside(folder: JSONValue, name: str) -> str:
    """A path below a folder of the artifact; `.` is its root."""
    return name if folder == "." else f"{folder}/{name}"


def _properties_problems(root: Path, manifest: Manifest) -> Iterator[Problem]:
    try:
        entries = parse_properties((root / PROPERTIES_NAME).read_bytes())
    except VerifyFailed as error:
        yield Problem(
            code=error.code,
            message=error.message,
            path=PROPERTIES_NAME,
            hint=error.hints[0],
        )
        return
    if entries != manifest.serving.get("properties"):
        yield _disagree(
            PROPERTIES_NAME, f"{PROPERTIES_NAME} differs from the manifest's entries"
        )
    own = (("engine", "Python"), ("option.entryPoint", "model.py"))
    for key, wanted in own if manifest.serving.get("handler") else ():
        if entries.get(key) != wanted:
            yield _disagree(
                PROPERTIES_NAME,
                f"{PROPERTIES_NAME} has {key}={entries.get(key)}, the layout needs"
                f" {wanted}",
            )
    # A container's own handlers spell bounds in each release's way: LMI 0.30 means the
    # sum by `max_output_len`. What the backend wrote was compared above.
    bounds = manifest.bounds if manifest.serving.get("handler") else {}
    for name, value in bounds.items():
        said = entries.get(f"option.{name}")
        if said is not None and said != str(value):
            yield _disagree(
                PROPERTIES_NAME,
                f"{PROPERTIES_NAME} has option.{name}={said}, the bound is {value}",
            )


def _settings_problems(root: Path, manifest: Manifest) -> Iterator[Problem]:
    name = "lmi_build.json"
    try:
        settings = json.loads((root / name).read_bytes())
    except (ValueError, RecursionError) as error:
        yield _disagree(name, f"{name} is not JSON: {error}")
        return
    said = settings.get("bounds", settings) if isinstance(settings, dict) else {}
    for key, value in manifest.bounds.items():
        if key in said and said[key] != value:
            yield _disagree(
                name, f"{name} has {key} {said[key]}, the manifest says {value}"
            )
    for key in ("max_input_len", "max_output_len"):
        if key not in said:
            yield _disagree(name, f"{name} has no {key}: nothing would enforce it")


def _requirements_problems(root: Path) -> Iterator[Problem]:
    name = "requirements.txt"
    text = (root / name).read_text("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if not _PIN.match(line):
            yield Problem(
                code="verify.requirement-not-pinned",
                message=f"{name} line {number}: {line!r} is not `name==version`",
                path=name,
                hint="pin it: another version may read the engine differently",
            )


def _disagree(path: str, message: str) -> Problem:
    return Problem(
        code="verify.inconsistent", message=message, path=path, hint=_FETCH_AGAIN
    )
