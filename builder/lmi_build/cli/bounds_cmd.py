"""`bounds`: the lengths of an engine, from a log of real requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, say, table
from lmi_build.errors import UsageInvalid

if TYPE_CHECKING:
    from lmi_build.traffic.propose import Proposal
    from lmi_build.traffic.read import ReadOptions
    from lmi_build.traffic.tally import Tally

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
    concurrency: int | None,
    request_seconds: int | None,
    arrival_column: str | None,
    **reading: Any,
) -> None:
    """
    Choose bounds that reject at most a share of LOG, and reserve the least.

    LOG is JSONL or CSV, plain or gzip, or Parquet; `-` is standard input; `s3://` is
    read as it comes. Only counts of lengths are kept, no text.
    """
    from lmi_build.traffic.propose import proposal_document, propose

    timed = request_seconds is not None or arrival_column is not None
    options = replace(_options(**reading), arrival_column=arrival_column, timed=timed)
    proposal = propose(
        log,
        settings=state.settings(),
        options=options,
        reject=_share(reject, "--reject"),
        concurrency=concurrency,
        request_seconds=request_seconds,
        split_saves=_share(split_saves, "--split-saves"),
    )
    _tell_faults(state, proposal.tally)
    if state.output == "text":
        click.echo(_text(proposal))
    else:
        data(proposal_document(proposal))


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


def _text(proposal: Proposal) -> str:
    parts = [_lengths_text(proposal), _evenness_text(proposal), _curve_text(proposal)]
    if proposal.two_engines:
        parts.append(_split_text(proposal))
    parts.append(_bounds_text(proposal))
    return "\n\n".join(parts)


def _lengths_text(proposal: Proposal) -> str:
    measures = proposal.measures
    rows = []
    for name in ("input", "output", "total"):
        summary = getattr(measures, name)
        cells = [str(value) for value in summary.percentiles.values()]
        rows.append([name, f"{summary.mean:.1f}", f"{summary.cv:.2f}", *cells])
    percents = [f"p{percent:g}" for percent in measures.input.percentiles]
    head = f"{measures.requests:,} requests; tokens:"
    return f"{head}\n{table(['', 'mean', 'cv', *percents], rows)}"


def _evenness_text(proposal: Proposal) -> str:
    from lmi_build.sizing.traffic import EVEN_PADDING, PADDED_BATCH

    measures = proposal.measures
    word = "even" if measures.even else "uneven"
    return (
        f"traffic is {word}: {measures.padding_share:.0%} of a padded batch of"
        f" {PADDED_BATCH} would be padding (even below {EVEN_PADDING:.0%})"
    )


def _curve_text(proposal: Proposal) -> str:
    rows = []
    for choice in proposal.curve:
        mark = "  <-" if choice.target == proposal.choice.target else ""
        rows.append(
            [
                f"{float(choice.target):g}",
                f"{choice.rejected:,}",
                str(choice.capacity),
                str(choice.max_input_len),
                f"{choice.max_output_len}{mark}",
            ]
        )
    head = ["allowed", "rejected", "capacity", "max_input_len", "max_output_len"]
    return table(head, rows)


def _split_text(proposal: Proposal) -> str:
    split = proposal.split
    assert split is not None  # noqa: S101 - `two_engines` says so
    return (
        f"two engines would reserve {split.saved_share:.0%} less per request:\n"
        f"  {split.short_share:.1%} with prompts of at most {split.at}:"
        f" max_input_len {split.at}, max_output_len {split.short_output_len}\n"
        f"  the others: max_input_len {proposal.choice.max_input_len},"
        f" max_output_len {split.long_output_len}"
    )


def _bounds_text(proposal: Proposal) -> str:
    choice = proposal.choice
    told = f"  # rejects {choice.rejected:,} of {choice.requests:,}"
    lines = [
        "bounds:",
        f"  max_input_len: {choice.max_input_len}",
        f"  max_output_len: {choice.max_output_len}{told}",
    ]
    if proposal.bounds is not None:
        lines += [
            f"  max_batch_size: {proposal.max_batch_size}  # {proposal.batch_from}",
            f"  max_num_tokens: {proposal.bounds.max_num_tokens}",
        ]
    else:
        lines.append(
            "  # max_batch_size: `--concurrency N`, or `--request-seconds S` with times"
        )
    return "\n".join(lines)


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
