"""`job`: a build as SageMaker jobs; a command's module is read when it runs."""

from __future__ import annotations

import click

from lmi_build.cli.lazy import LazyGroup
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


@click.group(cls=LazyGroup, table=_COMMANDS)
@with_common_options
def job() -> None:
    """
    Build a recipe as SageMaker jobs: the same plan, the same keys, the same artifact.

    The recipe's `job` section says where; `--set job.role=...` and so on override it.
    """
