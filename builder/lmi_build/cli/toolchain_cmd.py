"""`toolchain`: the private environments of other projects' quantizers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, say, style, table
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from lmi_build.catalog.toolchains import Toolchain
    from lmi_build.toolchains.report import ToolchainRow

_COLORS = {"installed": "green", "broken": "red", "missing": None}


@click.group()
@with_common_options
def toolchain() -> None:
    """
    Install, list, try or remove the libraries that quantize.

    Each library lives in an environment of its own below the store, with versions that
    were tried together; recipes name it by `quantize.provider`.
    """


def _known(state: State) -> dict[str, Toolchain]:
    from lmi_build.catalog.toolchains import load_toolchains

    return load_toolchains(state.settings().toolchains_file)


def _find(state: State, name: str) -> Toolchain:
    from lmi_build.catalog.toolchains import find_toolchain

    return find_toolchain(name, _known(state))


def _methods(name: str) -> list[str]:
    """Methods that a provider offers by this toolchain."""
    from lmi_build import registry
    from lmi_build.errors import LmiBuildError

    found: set[str] = set()
    for provider in registry.names(registry.QUANTIZERS):
        try:
            info = registry.quantizer(provider).info
        except (LmiBuildError, ImportError):
            continue  # `doctor` says what is wrong with a plugin
        if info.toolchain == name:
            found |= set(info.methods)
    return sorted(found)


def _document(row: ToolchainRow) -> dict[str, Any]:
    return {**asdict(row), "methods": _methods(row.name)}


@toolchain.command(name="list")
@with_common_options
@click.pass_obj
def list_(state: State) -> None:
    """List every toolchain: installed or not, versions, methods, size."""
    from lmi_build.toolchains.report import list_toolchains

    rows = list_toolchains(_known(state).values(), state.settings())
    if state.output != "text":
        data([_document(row) for row in rows])
        return
    lines = [
        [
            row.name,
            row.status,
            ", ".join(_methods(row.name)),
            format_bytes(row.num_bytes) if row.num_bytes else "-",
            ", ".join(f"{name} {version}" for name, version in row.versions.items()),
        ]
        for row in rows
    ]
    click.echo(table(["name", "status", "methods", "bytes", "versions"], lines))


@toolchain.command()
@click.argument("name")
@with_common_options
@click.pass_obj
def install(state: State, name: str) -> None:
    """
    Install a toolchain; a second time takes milliseconds.

    pip runs with your own configuration (indexes, proxies, certificates). What is
    stopped half way leaves nothing that looks installed.
    """
    from lmi_build.toolchains.install import install as make

    found, made = make(
        _find(state, name),
        state.settings(),
        state.environ,
        say=lambda line: say(state, line),
    )
    if state.output != "text":
        data(
            {
                "name": name,
                "made": made,
                "folder": str(found.folder),
                "python": found.python,
                "versions": dict(found.versions),
                "num_bytes": found.num_bytes,
            }
        )
    verb = "installed" if made else "already installed"
    say(state, f"{verb}: {found.folder} ({format_bytes(found.num_bytes)})")


@toolchain.command()
@click.argument("name")
@with_common_options
@click.pass_obj
def remove(state: State, name: str) -> None:
    """Remove a toolchain's environments; what they made stays in the store."""
    from lmi_build.toolchains.install import remove as delete

    freed = delete(_find(state, name), state.settings())
    if state.output != "text":
        data({"name": name, "freed_bytes": freed})
    done = f"removed {name}, {format_bytes(freed)}"
    say(state, done if freed else f"{name} is not installed; nothing was removed")


@toolchain.command()
@click.argument("name", required=False)
@with_common_options
@click.pass_obj
def doctor(state: State, name: str | None) -> int:
    """
    Try installed toolchains: imports in a fresh process, versions against pins.

    Without NAME all installed ones are tried. The exit status is 3 when one that was
    tried is broken, or the named one is missing.
    """
    from lmi_build.toolchains.report import diagnose_toolchain

    chosen = [_find(state, name)] if name else list(_known(state).values())
    rows = [diagnose_toolchain(each, state.settings()) for each in chosen]
    if state.output != "text":
        data([_document(row) for row in rows])
    else:
        for row in rows:
            color = _COLORS[row.status]
            mark = style(state, row.status, fg=color, bold=color is not None)
            click.echo(f"{row.name}: {mark}\n  {row.evidence}")
            if row.fix:
                click.echo(f"  fix: {row.fix}")
    bad = {"broken", "missing"} if name else {"broken"}
    return 3 if any(row.status in bad for row in rows) else 0
