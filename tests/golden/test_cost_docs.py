"""The published speeds in the documentation are those of the data, with predictions."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from lmi_build.catalog.market import overlay, shipped_market
from throughputs import Measured, measured, tables

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "cost.md"
MARKED = re.compile(r"(<!-- measurements -->\n).*(<!-- /measurements -->)", re.DOTALL)


def rendered() -> str:
    """The table, with its sources below."""
    rows = measured()
    kept = Counter(row.source for row in rows if row.is_met)
    lines = [
        f"{sum(kept.values())} of {len(rows)} lie in their range; the rest was slower.",
        "",
        "| | on | model | bits | batch | ranks | in | out | published | predicted | |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --- |",
    ]
    names = list(tables()["measurements"])
    for row in rows:
        found = row.predicted()
        cells = [
            str(names.index(row.source) + 1),
            row.device,
            row.model,
            row.bits,
            row.batch_size,
            row.num_ranks,
            row.input_len,
            row.output_len,
            _published(row),
            f"{_short(found.low)} to {_short(found.high)}",
            "" if row.is_met else "missed",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    lines.append("")
    told = ""
    for number, name in enumerate(names, 1):
        table = tables()["measurements"][name]
        source = str(table["source"])
        if source.startswith("the same"):
            source = told + source.removeprefix("the same")
        else:
            told = source.partition(",")[0]
        lines.append(f"{number}. {source}")
    return "\n".join(lines) + "\n"


def _short(number: float) -> str:
    """Three digits, and never an exponent."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _published(row: Measured) -> str:
    unit = " ms" if row.kind == "first_token_ms" else ""
    return f"{row.number:g}{unit}"


def test_the_table_is_current(update_golden: bool) -> None:  # noqa: FBT001 - a fixture
    text = PAGE.read_text("utf-8")
    expected = MARKED.sub(lambda found: found[1] + rendered() + found[2], text)
    if update_golden:
        PAGE.write_text(expected, "utf-8")
        pytest.skip("rewritten")

    assert text == expected


def test_the_catalogue_in_the_documentation_is_read() -> None:
    """The example of a user's file is one, with every part in use."""
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    market = overlay(shipped_market(), block, "docs")

    added = market.instances["ml.g9.12xlarge"]
    assert market.device(added) is not None
    assert market.device(market.instances["ml.g7.2xlarge"]) is not None
    hour = market.price(market.instances["ml.p5en.48xlarge"], region="eu-central-1")
    assert hour is not None
    assert (hour.usd_per_hour.low, hour.derived) == (52, False)
