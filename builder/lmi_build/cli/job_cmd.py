"""`job`: a build as SageMaker jobs; a command's module is read when it runs."""

from __future__ import annotations

import importlib

import click

from lmi_build.cli.options import with_common_options

# Name, module and one line of help; the modules stay unread until they are needed.
_COMMANDS: dict[str, tuple[str, str]] = {
    "render": ("job_render", "Write the requests of the jobs, and check them."),
    "submit": ("job_submit", "Create the jobs, each once, and send what they read."),
    "status": ("job_status", "Show jobs, and each stage's state in the store."),
    "logs": ("job_status", "Print what a job's hosts said."),
    "wait": ("job_submit", "Watch jobs to their end, and create those that follow."),
    "cancel": ("job_status", "Stop jobs and leave their store clean."),
    "list": ("job_status", "List our jobs with state, age and cost so far."),
    "simulate": ("job_simulate", "Run the jobs on this machine, without AWS."),
}


class LazyJobs(click.Group):
    """The commands of `job`, imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of their use."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"lmi_build.cli.{_COMMANDS[cmd_name][0]}_cmd")
        # `list` is a word of Python's; its function ends in an underscore.
        command = getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_")
        assert isinstance(command, click.Command)  # noqa: S101 - our own modules
        return command

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyJobs)
@with_common_options
def job() -> None:
    """
    Build a recipe as SageMaker jobs: the same plan, the same keys, the same artifact.

    The recipe's `job` section says where; `--set job.role=...` and so on override it.
    """
