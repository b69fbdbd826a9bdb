"""`cost`: what serving a recipe costs, before anything is built or rented."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.catalog_option import catalog_path, with_catalog
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.page_option import need_plots, with_page, write_page
from lmi_build.cli.render import data, style, table

if TYPE_CHECKING:
    from lmi_build.catalog.prices import Price
    from lmi_build.costs import CostReport
    from lmi_build.sizing.cost import Cost
    from lmi_build.values.ranges import Range
    from lmi_build.values.settings import Settings


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--region", default="us-east-1", show_default=True, help="Of the prices.")
@click.option("--instance", default="", help="Instead of the recipe's target.")
@click.option("--mean-input-len", type=float, help="Tokens of a prompt in the mean.")
@click.option("--mean-output-len", type=float, help="Tokens of an answer in the mean.")
@click.option("--requests-per-second", type=float, help="In the mean.")
@click.option(
    "--utilisation", type=float, help="Share of the time that requests take, 0 to 1."
)
@click.option(
    "--traffic",
    metavar="FILE",
    help="A log of requests, as `bounds` reads it, or the JSON that it printed.",
)
@click.option("--build-instance", default="", help="Where the build runs.")
@click.option(
    "--alternatives",
    default=5,
    show_default=True,
    type=click.IntRange(min=0),
    help="How many cheaper ways to show.",
)
@with_page
@with_catalog
@with_common_options
@click.pass_obj
def cost(
    state: State,
    /,
    *,
    recipe: Path,
    traffic: str | None,
    alternatives: int,
    page: Path | None,
    catalog: Path | None,
    **told: Any,
) -> None:
    """
    Show what a million tokens of a recipe cost, as a range, and what would be cheaper.

    An hour's price, a roofline of prefill and decode, and the traffic; only
    config.json and the headers of safetensors files are read.
    """
    from lmi_build import api
    from lmi_build.catalog.market import read_market
    from lmi_build.costs import CostQuestion, cost_recipe

    _check(told)
    need_plots(page)
    settings = state.settings()
    recipes = api.load_recipe(recipe, overrides=state.overrides)
    market = read_market(catalog_path(state, catalog))
    if traffic is not None:
        told |= _from_log(traffic, told, settings)
    facts = api.resolve(recipes, settings, hashed=False, served=False)
    question = CostQuestion(
        market=market, num_alternatives=alternatives, ways=page is not None, **told
    )
    reports = [cost_recipe(each, facts[each.name], question) for each in recipes]
    if page is not None:
        from lmi_build.report.cost_page import render_costs

        write_page(state, page, render_costs(reports))
    if state.output == "text":
        asked = alternatives > 0
        texts = [_text(state, report, asked=asked) for report in reports]
        click.echo("\n\n".join(texts))
    else:
        data([document(report) for report in reports])


def _check(told: dict[str, Any]) -> None:
    """Refuse numbers that make no sense, with the option's name."""
    from lmi_build.errors import UsageInvalid

    limits = {
        "mean_input_len": 1e7,
        "mean_output_len": 1e7,
        "requests_per_second": 1e9,
        "utilisation": 1.0,
    }
    for name, limit in limits.items():
        number = told[name]
        if number is not None and not 0 < number <= limit:
            option = f"--{name.replace('_', '-')}"
            raise UsageInvalid(
                f"`{option}` is {number:g}",
                code="cost.bad-number",
                hints=(f"write a number above 0 and at most {limit:g}",),
            )
    if told["utilisation"] is not None and told["requests_per_second"] is not None:
        raise UsageInvalid(
            "`--utilisation` and `--requests-per-second` say the same thing twice",
            code="cost.bad-number",
            hints=("leave `--utilisation` out; it follows from the rate",),
        )


def _from_log(log: str, told: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Mean lengths, and the rate where the log has times; options come first."""
    from lmi_build.errors import UsageInvalid
    from lmi_build.traffic.said import traffic_document

    document = traffic_document(log, settings)
    try:
        lengths = document["lengths"]
        found: dict[str, Any] = {
            "mean_input_len": float(lengths["input"]["mean"]),
            "mean_output_len": float(lengths["output"]["mean"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UsageInvalid(
            f"{log} is not what `lmi-build bounds` prints: {error!r}",
            code="advice.unreadable",
            hints=("give the log itself, or make it anew with `lmi-build bounds`",),
        ) from error
    if told["utilisation"] is None:
        found["requests_per_second"] = document.get("requests_per_second")
    return {name: value for name, value in found.items() if told[name] is None}


def _text(state: State, report: CostReport, *, asked: bool) -> str:
    """A report for people; `asked` for cheaper ways or not."""
    price, found = report.price, report.cost
    traffic = report.traffic
    copies = f"{report.num_copies} copies, " if report.num_copies > 1 else ""
    lines = [
        f"{report.name}: {report.instance.name} in {price.region}, {price.words}",
        (
            f"requests of {traffic.mean_input_len:g} +"
            f" {traffic.mean_output_len:g} tokens, {copies}{report.batch_size} at once"
        ),
        table(["", "from", "to", "unit"], _rows(found)),
    ]
    if report.build is not None:
        built = report.build
        lines.append(
            f"the build, by a rule of thumb: {_short(built.hours)} hours on"
            f" {built.instance}, {_short(built.usd)} USD"
            + (" (price derived from EC2's)" if built.price.derived else "")
        )
    if not report.fits:
        lines.append(
            style(state, "not proven to fit", fg="yellow", bold=True)
            + ": see `lmi-build size`"
        )
    lines.extend(f"note: {note}" for note in report.notes)
    if report.alternatives:
        lines += ["", "cheaper, and fits for certain:", _alternatives(report)]
    elif asked:
        lines += ["", "no cheaper way that fits for certain was found"]
    return "\n".join(lines)


def _rows(found: Cost) -> list[list[str]]:
    from lmi_build.costs import cost_lines

    return [
        [name, _number(ends.low), _number(ends.high), unit]
        for name, ends, unit in cost_lines(found)
    ]


def _alternatives(report: CostReport) -> str:
    from lmi_build.costs import paid_of
    from lmi_build.plan.price_words import way_words

    rows = []
    for item in report.alternatives:
        ends, unit = paid_of(item.cost)
        rows.append(
            [way_words(item.setup), _number(ends.low), _number(ends.high), unit]
        )
    return table(["change", "from", "to", "unit"], rows)


def _number(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"  # noqa: PLR2004


def _short(ends: Range) -> str:
    return f"{_number(ends.low)} to {_number(ends.high)}"


def document(report: CostReport) -> dict[str, Any]:
    """A report for programs."""
    built = report.build
    return {
        "name": report.name,
        "instance": report.instance.name,
        "price": _price(report.price),
        "traffic": asdict(report.traffic),
        "batch_size": report.batch_size,
        "num_copies": report.num_copies,
        "fits": report.fits,
        "cost": asdict(report.cost),
        "build": {**asdict(built), "price": _price(built.price)} if built else None,
        "alternatives": [asdict(item) for item in report.alternatives],
        "notes": list(report.notes),
    }


def _price(price: Price) -> dict[str, Any]:
    """A price, with a word on whether it is SageMaker's own."""
    return {**asdict(price), "derived": price.derived}
