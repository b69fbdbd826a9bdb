"""Prices that stand on EC2's: what they are made of, and how they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmi_build.catalog.market import overlay, shipped_market
from lmi_build.catalog.prices import (
    CAPACITY_BLOCK,
    EC2,
    SAGEMAKER,
    SEARCHED,
    find_price,
    markups,
    price_ratios,
    price_tables,
)
from lmi_build.cli.main import run
from lmi_build.costs import CostQuestion, cost_recipe
from lmi_build.jobs.service import JobState
from lmi_build.jobs.status import cost_so_far
from lmi_build.plan.price_words import way_words
from lmi_build.report.cost_page import render_costs
from lmi_build.values.ranges import Range
from make_shapes import make_shapes
from tiny_costs import facts_8b, recipe_8b

if TYPE_CHECKING:
    from lmi_build.costs import CostReport

MINE = """
[prices.mine]
region = "us-east-1"
jobs = ["endpoint"]
source = "contract"
checked = "2026-11-01"
usd_per_hour = { "p6-b200.48xlarge" = 120.5 }
"""
OHIO = """
[prices.ohio]
region = "us-east-2"
jobs = ["endpoint"]
source = "contract"
checked = "2026-11-01"
usd_per_hour = { "p5en.48xlarge" = 900, "g6e.2xlarge" = 0.1 }
"""
THEIRS = """
[prices.theirs]
region = "eu-west-3"
basis = "ec2"
source = "EC2's page"
checked = "2026-11-01"
usd_per_hour = { "ml.g5.xlarge" = 2.0 }
"""


def test_the_markup_is_what_the_tables_say() -> None:
    """Both ends again, from the rows, without the package's own arithmetic."""
    ratios = [
        theirs / float(ours.usd_per_hour[name])
        for ours in price_tables()
        for table in price_tables()
        for name, theirs in table.usd_per_hour.items()
        if (ours.basis, table.basis, table.region) == (EC2, SAGEMAKER, ours.region)
        and name in ours.usd_per_hour
    ]

    assert len(ratios) > 100
    assert markups()[EC2] == Range(low=min(ratios), high=max(ratios))
    # Of the list itself: never below EC2, never half as much again.
    assert 1 < min(ratios) < max(ratios) < 1.5


def test_the_documentation_has_the_numbers_that_follow() -> None:
    page = (Path(__file__).parents[2] / "docs/concepts/cost.md").read_text("utf-8")
    ends = markups()[EC2]
    both = {name for name, _ in price_ratios(price_tables())}

    assert f"times {ends.low:.3f} to {ends.high:.3f}" in page
    assert f"the {len(both)} instances of the catalogue" in page
    row = shipped_market().instances["ml.p6-b200.48xlarge"]
    price = shipped_market().price(row, region="us-east-1")
    assert price is not None
    assert f"{row.name} in us-east-1, {price.words}" in page


def test_no_known_price_lies_outside_of_what_would_be_derived() -> None:
    """Without SageMaker's tables each price of a region is inside the range."""
    below = tuple(table for table in price_tables() if table.basis != SAGEMAKER)
    seen = 0
    for table in price_tables():
        if table.basis != SAGEMAKER:
            continue
        for name, number in table.usd_per_hour.items():
            found = find_price(below, name, region=table.region)
            if found is None:
                continue
            seen += 1
            assert found.basis == EC2
            low, high = found.usd_per_hour.low, found.usd_per_hour.high
            assert low <= number * (1 + 1e-12), name
            assert number <= high * (1 + 1e-12), name
    assert seen > 100


@pytest.mark.parametrize(
    "name", ["g7e.8xlarge", "g7e.24xlarge", "g7e.48xlarge", "p5en.48xlarge"]
)
def test_prices_of_another_region_lie_inside(name: str) -> None:
    """What the ends were not made of: SageMaker's price elsewhere."""
    here = find_price(price_tables(), name, region="us-east-1")
    other = "us-east-2" if name.startswith("p5en") else "us-west-2"
    there = find_price(price_tables(), name, region=other)

    assert here is not None
    assert there is not None
    assert (here.basis, there.basis) == (EC2, SAGEMAKER)
    low, high = here.usd_per_hour.low, here.usd_per_hour.high
    assert low < there.listed_usd_per_hour < high


def test_a_users_price_replaces_what_is_derived() -> None:
    base = shipped_market()
    row = base.instances["ml.p6-b200.48xlarge"]
    before = base.price(row, region="us-east-1")
    after = overlay(base, MINE, "mine.toml").price(row, region="us-east-1")

    assert before is not None
    assert (before.derived, before.listed_usd_per_hour) == (True, 113.9328)
    assert before.usd_per_hour == markups()[EC2].times(113.9328)
    assert after is not None
    assert (after.derived, after.usd_per_hour) == (False, Range(low=120.5, high=120.5))


def test_a_users_ec2_price_is_derived_from_and_moves_no_other() -> None:
    base = shipped_market()
    market = overlay(base, THEIRS, "theirs.toml")
    found = market.price(market.instances["ml.g5.xlarge"], region="eu-west-3")

    assert found is not None
    assert (found.basis, found.source) == (EC2, "EC2's page")
    assert found.usd_per_hour == markups()[EC2].times(2.0)
    for row in market.instances.values():
        for region in base.regions(row):
            assert market.price(row, region=region) == base.price(row, region=region)


def test_blocks_start_at_what_the_block_costs() -> None:
    found = find_price(price_tables(), "p5e.48xlarge", region="us-west-2")

    assert found is not None
    assert found.basis == CAPACITY_BLOCK
    assert found.usd_per_hour.low == found.listed_usd_per_hour == 47.76
    assert found.usd_per_hour.high == 47.76 * markups()[EC2].high


def test_the_answer_says_what_it_stands_on() -> None:
    question = CostQuestion(market=shipped_market(), instance="ml.p6-b200.48xlarge")
    report = cost_recipe(recipe_8b(), facts_8b(), question)
    (note,) = [note for note in report.notes if "derived" in note]

    assert "derived from the 113.933 that EC2 asks on demand" in report.price.words
    assert f"not found by {SEARCHED}" in note
    assert '"p6-b200.48xlarge" = N' in note
    hour = report.price.usd_per_hour
    assert hour.low < hour.high
    assert report.cost.reserved_usd_per_hour == hour
    page = render_costs([report])
    assert "derived from the 113.933 that EC2 asks on demand" in page


def test_blocks_are_no_cheaper_way_but_of_their_own() -> None:
    """A dear p5en, a cheap g6e, and p5e between them, which is bought ahead."""
    market = overlay(shipped_market(), OHIO, "ohio.toml")

    def asked(instance: str) -> CostReport:
        question = CostQuestion(market=market, region="us-east-2", instance=instance)
        return cost_recipe(recipe_8b(), facts_8b(), question)

    dear, block = asked("ml.p5en.48xlarge"), asked("ml.p5e.48xlarge")

    # It would be the cheaper one, were it sold by the hour.
    assert block.cost.usd_per_million.high < dear.cost.usd_per_million.low
    assert [item.setup.instance for item in dear.alternatives] == ["ml.g6e.2xlarge"]
    assert any("bought ahead" in note for note in block.notes)


def test_a_cheaper_way_on_a_derived_price_says_so() -> None:
    """The same block with fewer ranks; words and data name what it stands on."""
    market = shipped_market()
    question = CostQuestion(
        market=market, region="us-west-2", instance="ml.p5e.48xlarge"
    )
    report = cost_recipe(recipe_8b(tensor_parallel_size=8), facts_8b(), question)
    own = [
        item.setup
        for item in report.alternatives
        if item.setup.instance == "ml.p5e.48xlarge"
    ]

    assert own
    for setup in own:
        assert setup.price_basis == CAPACITY_BLOCK
        assert way_words(setup).endswith("(price derived from EC2's)")


def test_a_job_costs_so_much_at_most() -> None:
    state = JobState(
        name="j",
        kind="training",
        arn="a",
        status="InProgress",
        instance="ml.trn1n.32xlarge",
        num_hosts=2,
    )
    usd, source = cost_so_far(state, "us-east-1", 1800)

    assert usd == 24.78 * markups()[EC2].high
    assert "at most" in source
    assert "derived from the 24.78 that EC2 asks" in source


def test_the_commands_mark_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In JSON by a word, in text by the price's own line."""
    make_shapes("Llama-3.1-8B-Instruct", tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        "schema: lmi-build/v1\nname: large\n"
        "model: {source: ./Llama-3.1-8B-Instruct}\nquantize: {method: none}\n"
        "bounds: {max_input_len: 1024, max_output_len: 256, max_batch_size: 8}\n"
        "compile: {backend: tensorrt-llm, release: djl-tensorrtllm-0.33.0,"
        " target: ml.g5.12xlarge}\n"
    )
    monkeypatch.chdir(tmp_path)
    argv = ["cost", "recipe.yaml", "--quiet", "--cache-dir", "store"]
    argv += ["--instance", "ml.g7e.8xlarge"]
    assert run([*argv, "--output", "json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert run(argv) == 0
    said = capsys.readouterr().out

    assert document["price"]["derived"] is True
    assert document["price"]["basis"] == EC2
    assert document["price"]["listed_usd_per_hour"] == 5.26824
    assert document["build"]["price"]["derived"] is True
    assert {item["setup"]["price_basis"] for item in document["alternatives"]} <= {
        SAGEMAKER,
        SEARCHED,
        EC2,
    }
    assert "derived from the 5.26824 that EC2 asks on demand (2026-07-20)" in said
    assert "note: the price is derived" in said
