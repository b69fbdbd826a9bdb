"""
Draw the pictures of docs/concepts/ from what the commands would show.

`scripts/gen_pictures.py` writes; `--check` only compares, and fails when one is stale.
The models are shapes alone (scripts/make_shapes.py), the traffic comes from a formula,
and nothing is read from a clock or a network, so that the same code draws the same
bytes.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build import api
from lmi_build.advise import Wishes, advise, ask
from lmi_build.catalog.market import read_market
from lmi_build.costs import CostQuestion, cost_recipe, paid_of
from lmi_build.recipe.load import parse_recipe
from lmi_build.report import cost_page, memory_section, traffic_page, ways_section
from lmi_build.report.plots import WIDE, axis, color, draw, values
from lmi_build.report.style import PALETTE
from lmi_build.sizes import size_recipe
from lmi_build.traffic.propose import propose
from lmi_build.values.settings import Settings
from make_log import log_text
from make_shapes import make_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.advice.advisor import Answer
    from lmi_build.costs import CostReport
    from lmi_build.traffic.propose import Proposal
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe

PICTURES = Path(__file__).parents[1] / "docs" / "concepts" / "pictures"
RECIPE = """\
schema: lmi-build/v1
name: llama-3.1-8b-awq
model: {source: ./Llama-3.1-8B-Instruct}
quantize: {method: awq, group_size: 128, sym: true}
bounds: {max_input_len: 4096, max_output_len: 512, max_batch_size: 16}
compile:
  backend: tensorrt-llm
  target: ml.g5.xlarge
  release: djl-tensorrtllm-0.33.0
"""
_ROW = 30


def main() -> int:
    """Write or check every picture; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, svg in pictures():
        path = PICTURES / name
        if path.is_file() and path.read_text("utf-8") == svg:
            continue
        stale.append(name)
        if not check:
            PICTURES.mkdir(parents=True, exist_ok=True)
            path.write_text(svg, "utf-8")
    if stale and check:
        sys.stderr.write(f"stale: {', '.join(stale)}; run scripts/gen_pictures.py\n")
        return 1
    return 0


def pictures() -> Iterator[tuple[str, str]]:
    """File name and text of every picture."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        recipe, facts = _llama(root)
        sized = size_recipe(recipe, facts)
        yield (
            "memory.svg",
            _file(memory_section.stack_spec(sized.fit, WIDE), "memory of one device"),
        )
        report = _cost(recipe, facts)
        paid, unit = paid_of(report.cost)
        rows = [("this recipe", paid)]
        rows += [
            (", ".join(item.setup.changes), paid_of(item.cost)[0])
            for item in report.alternatives
        ]
        yield (
            "cost.svg",
            _file(cost_page.interval_spec(rows, unit, WIDE), "costs as intervals"),
        )
        shown = ways_section.Paid(title="USD an hour, all instances", said="")
        yield (
            "front.svg",
            _file(
                ways_section.ways_spec(report.ways, shown, WIDE), "cost against margin"
            ),
        )
        proposal = _traffic(root)
        cells = traffic_page.binned(proposal.tally.joint)
        yield (
            "lengths.svg",
            _file(
                traffic_page.heat_spec(cells, proposal.choice, WIDE),
                "lengths of requests with the chosen bounds",
            ),
        )
        points = [choice for choice in proposal.curve if choice.rejected]
        yield (
            "rejected.svg",
            _file(
                traffic_page.curve_spec(points, proposal.choice, WIDE),
                "rejected share against capacity",
            ),
        )
    wishes = Wishes(instance="ml.g5.2xlarge", traffic="even")
    answer = advise(ask({"model_type": "llama"}, wishes))
    yield "points.svg", _file(_points(answer), "points of each system")


def _llama(root: Path) -> tuple[Recipe, ModelFacts]:
    make_shapes("Llama-3.1-8B-Instruct", root)
    (recipe,) = parse_recipe(RECIPE, file=str(root / "recipe.yaml"))
    settings = Settings(cache_dir=root / "store", offline=True)
    return recipe, api.resolve([recipe], settings, hashed=False)[recipe.name]


def _cost(recipe: Recipe, facts: ModelFacts) -> CostReport:
    question = CostQuestion(
        market=read_market(None),
        mean_input_len=900,
        mean_output_len=250,
        requests_per_second=6,
        ways=True,
    )
    return cost_recipe(recipe, facts, question)


def _traffic(root: Path) -> Proposal:
    log = root / "log.csv"
    log.write_text(log_text(20_000), "utf-8")
    settings = Settings(cache_dir=root / "store")
    return propose(str(log), settings=settings, reject=Fraction(1, 200))


def _points(answer: Answer) -> dict[str, Any]:
    """Points of the systems that remain, as bars."""
    rows = [
        {
            "name": f"{each.option.system.title} on {each.option.port.device}",
            "points": each.score,
            "end": max(0, each.score),
            "said": f"{each.score:+d}",
        }
        for each in answer.candidates
    ]
    y = {
        "field": "name",
        "type": "nominal",
        "sort": None,
        "axis": axis("", domain=False, ticks=False, labelColor="var(--ink)"),
    }
    x = {
        "field": "points",
        "type": "quantitative",
        "axis": axis("points", tickMinStep=1),
    }
    at = {"x": x, "y": y}
    layers = [
        {"mark": {"type": "bar", "fill": color(0), "height": 16}, "encoding": at},
        {
            "mark": {"type": "text", "align": "left", "dx": 5},
            "encoding": {
                "x": {"field": "end", "type": "quantitative"},
                "y": y,
                "text": {"field": "said"},
            },
        },
    ]
    return {
        "spec": {"data": values(rows), "layer": layers},
        "height": _ROW * len(rows) + 50,
        "margins": (240, 40, 6, 44),
    }


def _file(chart: Mapping[str, Any], title: str) -> str:
    """A chart as a file that knows its colours, in the light and in the dark."""
    svg = draw(
        chart["spec"], width=WIDE, height=chart["height"], margins=chart["margins"]
    )
    head, _, rest = svg.partition(">")
    head = re.sub(r' (?:version|class|xmlns:xlink)="[^"]*"', "", head)
    return f"{head}><title>{title}</title><style>\n{PALETTE}\n</style>{rest}\n"


if __name__ == "__main__":
    sys.exit(main())
