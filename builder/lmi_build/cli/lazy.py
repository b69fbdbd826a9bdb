"""A group of commands, each imported when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping


class LazyGroup(click.Group):
    """
    Commands that are imported one at a time.

    `--help` then costs little more than starting Python.

    Args:
        table: Name to module (`lmi_build.cli.<module>_cmd`) and one line of help, in
            the order of use.
    """

    def __init__(
        self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the table's order."""
        del ctx
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        del ctx
        if cmd_name not in self.table:
            return None
        module = importlib.import_module(f"lmi_build.cli.{self.table[cmd_name][0]}_cmd")
        # `list` is a word of Python's; its function ends in an underscore.
        command = getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_")
        assert isinstance(command, click.Command)  # noqa: S101 - our own modules
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of that name."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from lmi_build.text import did_you_mean

            near = did_you_mean(args[0], self.table)
            message = f"no command `{args[0]}`"
            hint = f"; did you mean `{near}`?" if near else ""
            raise click.UsageError(message + hint, ctx) from error

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])
