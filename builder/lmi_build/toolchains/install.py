"""A toolchain's environment made, whole or not at all, or removed."""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING

from lmi_build.errors import (
    ToolMissing,
)
from lmi_build.store.files import explaining, locked, remove_tree, write_atomic
from lmi_build.toolchains.environment import (
    MARKER,
    SCHEMA,
    Installed,
    extensions_dir,
    find_installed,
    folder_of,
    lock_path,
    read_installed,
    toolchains_dir,
    wrong_versions,
)
from lmi_build.toolchains.interpreter import (
    environment_versions,
    find_python,
    import_failure,
    python_version,
)
from lmi_build.toolchains.pip import install_packages, run_logged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lmi_build.catalog.toolchains import Toolchain
    from lmi_build.values.settings import Settings

    Say = Callable[[str], None]

# These would lead an interpreter, or pip, to packages of somebody else.
_FOREIGN = frozenset(
    {
        "PIP_PREFIX",
        "PIP_REQUIRE_VIRTUALENV",
        "PIP_TARGET",
        "PIP_USER",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
    }
)


def install(
    toolchain: Toolchain,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    say: Say = lambda _line: None,
) -> tuple[Installed, bool]:
    """
    Install a toolchain, unless it is there.

    pip reads its own configuration (indexes, proxies, certificates) as it always does.

    Args:
        toolchain: What to install.
        settings: Where the store is; offline, pip uses no index, only what its
            `find-links` name.
        environ: The user's environment, handed to pip.
        say: Told what is done.

    Returns:
        The environment, and whether it was made now.

    Raises:
        ToolMissing: `toolchain.install` with pip's last lines, `toolchain.python`, or
            `toolchain.imports` when what was installed does not work.
        RemoteFailed: `toolchain.network`.
        DoesNotFit: `store.disk-full`.
    """
    found = find_installed(toolchain, settings)
    if found is not None:
        return found, False
    root = toolchains_dir(settings)
    with explaining("installing a toolchain", root):
        root.mkdir(parents=True, exist_ok=True)
        with locked(lock_path(toolchain.name, settings), wait=False) as mine:
            if mine:
                return _install_locked(toolchain, settings, environ, say)
        say(f"{toolchain.name} is in use or being installed elsewhere; waiting")
        with locked(lock_path(toolchain.name, settings)):
            return _install_locked(toolchain, settings, environ, say)


def _install_locked(
    toolchain: Toolchain, settings: Settings, environ: Mapping[str, str], say: Say
) -> tuple[Installed, bool]:
    found = find_installed(toolchain, settings)
    if found is not None:
        return found, False
    folder = folder_of(toolchain, settings)
    partial = folder.with_name(f".partial-{folder.name}")
    log = toolchains_dir(settings) / f"{folder.name}.log"
    _sweep(toolchain.name, settings)
    started = time.monotonic()
    clean = {k: v for k, v in environ.items() if k not in _FOREIGN}
    clean |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    if settings.offline:
        clean["PIP_NO_INDEX"] = "1"
    try:
        python = find_python(toolchain, clean)
        with log.open("wb"):
            pass
        say(f"making an environment for {toolchain.name}; the log is {log}")
        run_logged([python, "-m", "venv", str(partial)], clean, log, toolchain)
        install_packages(toolchain, partial, clean, log, say, offline=settings.offline)
        say(f"importing {', '.join(toolchain.imports)}")
        _try_imports(toolchain, partial, settings, log)
        _finish(toolchain, partial, folder, seconds=time.monotonic() - started)
    except BaseException:
        remove_tree(partial)
        raise
    made = read_installed(folder)
    if made is None:
        raise RuntimeError(f"{folder} was just made and cannot be read")
    return made, True


def _sweep(name: str, settings: Settings) -> None:
    """Remove what stopped installs and removals left, and a damaged environment."""
    root = toolchains_dir(settings)
    for pattern in (f".partial-{name}-*", f".removed-{name}-*", f"{name}-*"):
        for path in root.glob(pattern):
            if path.is_dir() and read_installed(path) is None and _is_of(path, name):
                remove_tree(path)


def _is_of(path: Path, name: str) -> bool:
    """Whether a folder is this toolchain's, and not one's whose name begins so."""
    return re.fullmatch(rf"(\.\w+-)?{re.escape(name)}-[0-9a-f]+", path.name) is not None


def _try_imports(
    toolchain: Toolchain, partial: Path, settings: Settings, log: Path
) -> None:
    failure = import_failure(partial / "bin" / "python", toolchain, settings)
    if failure:
        raise ToolMissing(
            f"the toolchain `{toolchain.name}` was installed and does not work:"
            f" {failure}",
            code="toolchain.imports",
            hints=(f"the log has what was installed: {log}",),
        )


def _finish(
    toolchain: Toolchain, partial: Path, folder: Path, *, seconds: float
) -> None:
    """Write the marker and give the environment its name, in one step."""
    python = partial / "bin" / "python"
    versions = environment_versions(python)
    wrong = wrong_versions(toolchain, versions)
    if wrong:
        raise ToolMissing(
            f"pip installed other versions than were asked for: {wrong}",
            code="toolchain.install",
            hints=("check which indexes pip uses: `pip config list`",),
        )
    _move_scripts(partial, folder)
    document = {
        "schema": SCHEMA,
        "name": toolchain.name,
        "digest": toolchain.digest,
        "pins": toolchain.pins,
        "python": python_version(str(python), {}),
        "versions": versions,
        "num_bytes": tree_bytes(partial),
        "seconds": round(seconds, 1),
    }
    write_atomic(
        partial / MARKER, json.dumps(document, indent=1, sort_keys=True).encode()
    )
    partial.rename(folder)


def _move_scripts(partial: Path, folder: Path) -> None:
    """Let the first lines of scripts name the interpreter's final place."""
    before, after = str(partial).encode(), str(folder).encode()
    for path in (partial / "bin").iterdir():
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if before in data and b"\0" not in data:
            path.write_bytes(data.replace(before, after))


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(
        os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 - one call per file
        for place, _, names in os.walk(folder)
        for name in names
    )


def remove(toolchain: Toolchain, settings: Settings) -> int:
    """
    Remove every environment of a toolchain, whichever pins it has.

    Returns:
        Bytes freed.

    Raises:
        ToolMissing: `toolchain.in-use`, while a worker runs in it.
    """
    root = toolchains_dir(settings)
    if not root.is_dir():
        return 0
    with (
        explaining("removing a toolchain", root),
        locked(lock_path(toolchain.name, settings), wait=False) as mine,
    ):
        if not mine:
            raise ToolMissing(
                f"the toolchain `{toolchain.name}` is in use",
                code="toolchain.in-use",
                hints=("wait for the build or the install that uses it",),
            )
        freed = 0
        for path in [p for p in root.iterdir() if _is_of(p, toolchain.name)]:
            freed += tree_bytes(path)
            gone = path.with_name(f".removed-{path.name.lstrip('.')}")
            if not path.name.startswith("."):
                path.rename(gone)
                path = gone  # noqa: PLW2901 - what is left to delete
            remove_tree(path)
        for log in root.glob(f"{toolchain.name}-*.log"):
            log.unlink()
        remove_tree(extensions_dir(toolchain.name, settings))
        return freed
