"""`bounds`: the lengths of an engine, from a log of real requests."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.page_option import need_plots, with_page, write_page
from lmi_build.cli.render import data, say
from lmi_build.errors import UsageInvalid

if TYPE_CHECKING:
    from lmi_build.traffic.propose import Proposal
    from lmi_build.traffic.read import ReadOptions
    from lmi_build.traffic.tally import Tally

# Status of `bounds check` when the bounds reject more than they may.
_DRIFTED = 11
F = TypeVar("F", bound=Callable[..., Any])


class _LogFirst(click.Group):
    """A group whose own argument is a log; `check` before it is the other command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the usual command in front of a log."""
        if (
            args
            and not {"-h", "--help"} & set(args[:1])
            and args[0] not in self.commands
        ):
            args = ["choose", *args]
        return super().parse_args(ctx, args)


_READING = (
    click.option(
        "--input-column", metavar="NAME", help="Prompt lengths; a dot goes deeper."
    ),
    click.option("--output-column", metavar="NAME", help="Answer lengths."),
    click.option(
        "--tokenizer",
        type=click.Path(path_type=Path),
        help="The columns hold texts: count their tokens with this `tokenizer.json`.",
    ),
    click.option(
        "--max-bad-share",
        default="0.01",
        show_default=True,
        metavar="SHARE",
        help="Rows without usable lengths that are left out.",
    ),
)


def _with_reading(function: F) -> F:
    """Let a command take the options of reading a log."""
    for option in reversed(_READING):
        function = option(function)
    return function


@click.group(cls=_LogFirst)
@with_common_options
def bounds() -> None:
    """
    Choose an engine's bounds from a log of requests: `lmi-build bounds LOG`.

    `lmi-build bounds choose --help` lists the options. A log that is called like a
    command is written `./check`.
    """


@bounds.command()
@click.argument("log")
@click.option(
    "--reject",
    default="0.001",
    show_default=True,
    metavar="SHARE",
    help="Requests that may be too long.",
)
@click.option("--arrival-column", metavar="NAME", help="Times of arrival.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Requests at once: `max_batch_size`.",
)
@click.option(
    "--request-seconds",
    type=click.IntRange(min=1),
    help="How long a request takes; with times of arrival it gives `max_batch_size`.",
)
@click.option(
    "--split-saves",
    default="0.25",
    show_default=True,
    metavar="SHARE",
    help="Capacity that two engines must save to be named.",
)
@click.option(
    "--write",
    "recipe",
    type=click.Path(path_type=Path),
    metavar="RECIPE",
    help="Put the bounds into a recipe; its comments stay.",
)
@with_page
@_with_reading
@with_common_options
@click.pass_obj
def choose(
    state: State,
    /,
    *,
    log: str,
    reject: str,
    split_saves: str,
    recipe: Path | None,
    page: Path | None,
    **how: Any,
) -> None:
    """
    Choose bounds that reject at most a share of LOG, and reserve the least.

    LOG is JSONL or CSV, plain or gzip, or Parquet; `-` is standard input; `s3://` is
    read as it comes. Only counts of lengths are kept, no text.
    """
    from lmi_build.cli.bounds_text import proposal_text
    from lmi_build.traffic.propose import proposal_document, propose

    need_plots(page)
    concurrency, seconds = how.pop("concurrency"), how.pop("request_seconds")
    arrival = how.pop("arrival_column")
    options = replace(
        _options(**how),
        arrival_column=arrival,
        timed=seconds is not None and concurrency is None,
    )
    proposal = propose(
        log,
        settings=state.settings(),
        options=options,
        reject=_share(reject, "--reject"),
        concurrency=concurrency,
        request_seconds=seconds,
        split_saves=_share(split_saves, "--split-saves"),
    )
    _tell_faults(state, proposal.tally)
    if recipe is not None:
        _write(state, recipe, proposal)
    if page is not None:
        from lmi_build.report.traffic_page import render_traffic

        write_page(state, page, render_traffic(proposal))
    if state.output == "text":
        click.echo(proposal_text(proposal))
    else:
        data(proposal_document(proposal))


def _write(state: State, recipe: Path, proposal: Proposal) -> None:
    """Put the chosen numbers into a recipe that is whole before and after."""
    from lmi_build import api
    from lmi_build.recipe.rewrite import set_numbers
    from lmi_build.recipe.source import read_source

    api.load_recipe(recipe)
    numbers = {
        "max_input_len": proposal.choice.max_input_len,
        "max_output_len": proposal.choice.max_output_len,
    }
    if proposal.bounds is not None and proposal.bounds.max_num_tokens is not None:
        numbers["max_batch_size"] = proposal.bounds.max_batch_size
        numbers["max_num_tokens"] = proposal.bounds.max_num_tokens
    text = set_numbers(read_source(recipe).text, str(recipe), "bounds", numbers)
    _write_file(recipe, text, "writing the bounds", "--write RECIPE")
    told = ", ".join(f"{key} {value}" for key, value in numbers.items())
    say(state, f"{recipe}: {told}")


def _write_file(path: Path, text: str, doing: str, option: str) -> None:
    """Write a file whole; one that was there keeps its mode, a link its target."""
    from lmi_build.store.files import explain_output_error, write_atomic

    path = path.resolve()
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
        write_atomic(path, text.encode())
        if mode is not None:
            path.chmod(mode)
    except OSError as error:
        raise explain_output_error(error, doing, path, option=option) from error


@bounds.command()
@click.argument("log")
@click.argument("built", metavar="ARTIFACT|RECIPE")
@click.option(
    "--reject",
    default="0.001",
    show_default=True,
    metavar="SHARE",
    help="Requests that may be too long.",
)
@_with_reading
@with_common_options
@click.pass_obj
def check(state: State, /, *, log: str, built: str, reject: str, **reading: Any) -> int:
    """
    Hold a new LOG against the bounds that were built; exit with 11 when they drifted.

    The bounds are those of an artifact (a folder or an `s3://` prefix) or of a recipe
    file. They have drifted when they reject more than the wanted share.
    """
    from lmi_build.cli.bounds_text import drift_text
    from lmi_build.sizing.drift import drift
    from lmi_build.traffic.propose import drift_document
    from lmi_build.traffic.read import read_log

    target = _share(reject, "--reject")
    promised = _promised(state, built)
    tally = read_log(log, _options(**reading), state.settings())
    drifts = [
        (name, drift(tally.joint, input_len, output_len, target))
        for name, (input_len, output_len) in promised.items()
    ]
    _tell_faults(state, tally)
    if state.output == "text":
        click.echo(drift_text(drifts))
    else:
        data(drift_document(log, tally, drifts))
    return 0 if all(found.within for _, found in drifts) else _DRIFTED


def _promised(state: State, built: str) -> dict[str, tuple[int, int]]:
    """Longest input and output of an artifact, or of each variant of a recipe."""
    if "://" not in built and Path(built).is_file():
        from lmi_build import api

        recipes = api.load_recipe(Path(built), overrides=state.overrides)
        return {
            item.name: (item.bounds.max_input_len, item.bounds.max_output_len)
            for item in recipes
        }
    from lmi_build import artifacts

    spec = artifacts.access(built)
    document, uri = artifacts.inspect_artifact(spec, state.settings())
    found = document["bounds"]
    return {uri: (int(found["max_input_len"]), int(found["max_output_len"]))}


def _options(
    *,
    input_column: str | None,
    output_column: str | None,
    tokenizer: Path | None,
    max_bad_share: str,
) -> ReadOptions:
    from lmi_build.traffic.read import ReadOptions

    return ReadOptions(
        input_column=input_column,
        output_column=output_column,
        tokenizer=tokenizer,
        max_bad_share=_share(max_bad_share, "--max-bad-share"),
    )


def _tell_faults(state: State, tally: Tally) -> None:
    from lmi_build.traffic.read import fault_lines

    for line in fault_lines(tally):
        say(state, f"note: left out: {line}")
    if tally.untimed:
        say(state, f"note: {tally.untimed:,} rows have no time of arrival")


def _share(text: str, option: str) -> Fraction:
    """A share from 0 to less than 1, exactly as it was written."""
    try:
        found = Fraction(text)
    except (ValueError, ZeroDivisionError):
        found = Fraction(-1)
    if not 0 <= found < 1:
        raise UsageInvalid(
            f"`{option} {text}` is no share from 0 to less than 1",
            code="usage.invalid",
            hints=(f"one in a thousand: `{option} 0.001`",),
        )
    return found
