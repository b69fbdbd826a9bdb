"""
`lmi-build`: the group of commands, the exit status, and nothing heavy.

A command's module is imported when the command runs, so that `--help` costs little
more than starting Python.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from lmi_build import __version__
from lmi_build.cli.lazy import LazyGroup
from lmi_build.cli.options import State, with_common_options
from lmi_build.errors import LmiBuildError

if TYPE_CHECKING:
    from collections.abc import Sequence

_GC_THRESHOLD = 200_000

# Name, module and one line of help; the modules stay unread until they are needed.
_COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("start", "Write a commented recipe to start from."),
    "validate": ("plan", "Check a recipe; every problem at once."),
    "plan": ("plan", "Show what a build would do, and what it would cost."),
    "advise": ("advise", "Say which serving system to use, and why."),
    "size": ("size", "Show what a model takes on each device, and whether it fits."),
    "bounds": ("bounds", "Choose an engine's bounds from a log of requests."),
    "cost": ("cost", "Show what a million tokens cost, and what would be cheaper."),
    "lock": ("lock", "Write down what a recipe is resolved to; --check, --upgrade."),
    "build": ("build", "Build what is missing, verify it, and publish if asked."),
    "verify": ("artifact", "Check every byte of an artifact, in a folder or in S3."),
    "publish": ("artifact", "Publish a built artifact to a folder or to S3."),
    "inspect": ("artifact", "Show what an artifact is and how to deploy it."),
    "report": ("report", "Write a page of an artifact's errors, bits, size and time."),
    "fetch": ("artifact", "Copy a published artifact into an empty folder, verified."),
    "serve": ("serve", "Serve an artifact over HTTP with its own handler."),
    "convert": ("convert", "Write a quantized checkpoint in another format, exactly."),
    "why": ("plan", "Say which field makes a stage build anew."),
    "toolchain": ("toolchain", "Install, list or try the libraries that quantize."),
    "job": ("job", "Build as SageMaker jobs: render, submit, wait and simulate."),
    "cache": ("cache", "List, verify, prune or locate the store."),
    "doctor": ("doctor", "Say which providers work here, with evidence and fixes."),
    "schema": ("start", "Print the JSON Schema of recipes."),
    "explain": ("start", "Explain an error code."),
}


@click.group(
    cls=LazyGroup,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88},
)
@click.version_option(__version__, "--version", prog_name="lmi-build")
@with_common_options
def cli() -> None:
    """
    Build servable, compiled LLM artifacts for AWS LMI containers.

    A recipe (YAML) takes a Hugging Face model through quantization and
    ahead-of-time compilation; the artifact is verified, packed and published.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    # Modules and recipes live to the end; looking for garbage among them costs 15 ms
    # of a short command and finds none.
    gc.set_threshold(_GC_THRESHOLD)
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run the command line; returns the exit status, with everything printed."""
    state = State(environ=dict(os.environ))
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _stop)
    try:
        status: Any = cli.main(
            argv, prog_name="lmi-build", standalone_mode=False, obj=state
        )
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _usage(error, state)
    except LmiBuildError as error:
        from lmi_build.cli.render import show_error

        show_error(error, state)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(state)
    except BrokenPipeError:
        # The reader of our output left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the last frame of the program
        return _bug(error, state)
    return status if isinstance(status, int) else 0


def _stop(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _interrupted(state: State) -> int:
    from lmi_build.cli.render import show_error
    from lmi_build.errors import Interrupted

    error = Interrupted(
        "interrupted; everything finished is kept",
        code="build.interrupted",
        hints=("run the same command again to go on",),
    )
    show_error(error, state)
    return error.exit_code


def _usage(error: click.ClickException, state: State) -> int:
    from lmi_build.cli.render import show_error
    from lmi_build.errors import UsageInvalid

    hints = ("run `lmi-build --help`",)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hints = (f"run `{error.ctx.command_path} --help`",)
    message = error.format_message()
    message = message[:1].lower() + message[1:].rstrip(".")
    show_error(UsageInvalid(message, code="usage.invalid", hints=hints), state)
    return UsageInvalid.exit_code


def _bug(error: Exception, state: State) -> int:
    if state.debug:
        import traceback

        traceback.print_exception(error)
    click.echo(
        f"error[bug]: {type(error).__name__}: {error}\n"
        "hint: this is a fault of lmi-build, not of yours; please report it with the"
        " output of the same command and `--debug`",
        err=True,
    )
    return 1
