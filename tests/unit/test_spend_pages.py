"""Pages of `plan`, `size` and `cost`: whole, safe, stable, and with every number."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromium import Browser, browser
from lmi_build import sizes
from lmi_build.backends.neuronx.topology import legal_sizes
from lmi_build.catalog.market import shipped_market
from lmi_build.cli.main import run
from lmi_build.plan.places import Way, front, thinned
from lmi_build.recipe.load import load_recipe
from lmi_build.report.plots import require_plots
from lmi_build.sizing.fit import CANNOT, FITS, UNPROVEN
from lmi_build.units import format_bytes
from lmi_build.values.bounds import Bounds
from lmi_build.values.ranges import Range
from lmi_build.values.recipe import ModelSpec, QuantSpec
from lmi_build.values.settings import Settings
from make_shapes import make_shapes
from make_tiny_model import make_tiny_model
from report_pages import Page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("vl_convert", reason="charts need lmi-build[report]")

TINY = """\
schema: lmi-build/v1
name: tiny
matrix: {quantize.bits: [4, 8]}
model: {source: ./model}
quantize:
  method: gptq
  group_size: 64
  calibration: {num_samples: 8, max_seq_len: 32}
bounds: {max_input_len: 32, max_output_len: 8, max_batch_size: 2}
compile: {backend: onnxruntime}
"""
LLAMA = """\
schema: lmi-build/v1
name: llama-awq
model: {source: ./Llama-3.1-8B-Instruct}
quantize: {method: awq, group_size: 128, sym: true}
bounds: {max_input_len: 4096, max_output_len: 512, max_batch_size: 16}
compile:
  backend: tensorrt-llm
  target: ml.g5.xlarge
  release: djl-tensorrtllm-0.33.0
"""
NEURON = LLAMA.replace("awq, group_size: 128, sym: true", "none").partition("compile")[
    0
] + (
    "compile: {backend: neuronx, target: ml.inf2.8xlarge, tensor_parallel_size: 2,"
    " release: djl-neuronx-0.30.0}\n"
)
BOUNDS = ["--max-input-len", "3072", "--max-output-len", "1024", "--max-batch-size"]
RATE = ["--requests-per-second", "2", "--mean-input-len", "900"]
COMMANDS: dict[str, list[str]] = {
    "plan": ["plan", "recipe.yaml"],
    "size": ["size", "llama.yaml", "--largest", "batch"],
    "too-large": [
        *("size", "--model", "./Llama-2-70b-chat-hf", "--target", "ml.g5.12xlarge"),
        *("--tensor-parallel-size", "4", *BOUNDS, "16"),
    ],
    "no-device": [
        *("size", "--model", "./Llama-3.1-8B-Instruct", "--target", "cpu"),
        *("--runtime", "onnxruntime", *BOUNDS, "1"),
    ],
    "cores": ["size", "neuron.yaml"],
    "model-cores": [
        *("size", "--model", "./Llama-3.1-8B-Instruct", "--runtime", "neuronx"),
        *("--target", "ml.inf2.8xlarge", "--tensor-parallel-size", "2", *BOUNDS, "4"),
    ],
    "cost": ["cost", "llama.yaml"],
    "rate": ["cost", "llama.yaml", *RATE, "--mean-output-len", "250"],
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes, a tiny model, and two large ones that are shapes alone."""
    root = tmp_path_factory.mktemp("desk")
    make_tiny_model(root / "model")
    for name in ("Llama-3.1-8B-Instruct", "Llama-2-70b-chat-hf"):
        make_shapes(name, root)
    (root / "recipe.yaml").write_text(TINY)
    (root / "llama.yaml").write_text(LLAMA)
    (root / "neuron.yaml").write_text(NEURON)
    return root


def page_of(desk: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of a command; made once."""
    page = desk / f"{name}.html"
    if not page.is_file():
        monkeypatch.chdir(desk)
        words = [*COMMANDS[name], "--html", page.name, "--cache-dir", "store"]
        assert run([*words, "--quiet"]) == 0
    return page


def printed(
    desk: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> Any:  # what JSON holds
    """The same command's JSON."""
    capsys.readouterr()
    words = [*COMMANDS[name], "--output", "json", "--cache-dir", "store"]
    assert run([*words, "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", COMMANDS)
def test_pages_are_whole_and_load_nothing(
    desk: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Balanced tags, known attributes, no address in them, and not large."""
    markup = page_of(desk, name, monkeypatch).read_text("utf-8")
    page = Page(markup)

    assert page.headings[0] == "h1"
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert not re.search(r"https?:|@import|url\(", markup)
    assert "default-src 'none'" in markup
    assert len(markup) < 160_000


@pytest.mark.parametrize("name", ["plan", "too-large", "rate"])
def test_the_same_command_gives_the_same_bytes(
    desk: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = page_of(desk, name, monkeypatch).read_bytes()
    (desk / f"{name}.html").unlink()

    assert page_of(desk, name, monkeypatch).read_bytes() == before


@pytest.mark.parametrize(
    "name", ["size", "too-large", "no-device", "cores", "model-cores"]
)
def test_every_number_of_a_size_stands_on_its_page(
    desk: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lines to the byte with formula and source, sums, margin, verdict and changes."""
    markup = page_of(desk, name, monkeypatch).read_text("utf-8")
    monkeypatch.chdir(desk)
    said = " ".join("".join(Page(markup).text).split())
    (report,) = printed(desk, name, capsys)
    sizes = [report["total_low_bytes"], report["total_high_bytes"]]
    if report["capacity_high_bytes"]:
        sizes += [report["capacity_low_bytes"], report["capacity_high_bytes"]]
        sizes += [report["margin_worst_bytes"], report["margin_best_bytes"]]
    for line in report["lines"]:
        sizes += [line["low_bytes"], line["high_bytes"]]
        assert line["name"] in said
        assert line["formula"].replace("`", "") in said
        assert line["source"].replace("`", "") in said
    for size in sizes:
        assert format_bytes(size) in said
        assert abs(size) < 1024 or f"{size:,}" in said
    for change in report["changes"]:
        assert change["text"].replace("`", "") in said
    for value in (report["largest"] or {}).values():
        assert (f"{value:,}" if isinstance(value, int) else value) in said
    if report["capacity_high_bytes"]:
        assert report["verdict"] in said


def test_cores_have_their_money_too(
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every Neuron instance that its backend builds for, as it counts cores there."""
    markup = page_of(desk, "cores", monkeypatch).read_text("utf-8")
    monkeypatch.chdir(desk)
    said = "".join(Page(markup).text)
    (recipe,) = load_recipe(desk / "neuron.yaml")
    facts = sizes.resolve_facts(recipe.model, Settings(cache_dir=desk / "store"))
    report = sizes.size_recipe(recipe, facts)
    ways = sizes.compare_places(
        report,
        facts,
        recipe.quantize,
        market=shipped_market(),
        region="us-east-1",
        recipe=recipe,
    )

    assert "Cost against margin" in said
    assert len({way.instance for way in ways}) >= 4
    assert [way.instance for way in ways if way.asked] == ["ml.inf2.8xlarge"]
    for way in ways:
        compiled = replace(
            recipe.compile,
            target=way.instance,
            tensor_parallel_size=way.tensor_parallel_size,
        )
        other = sizes.size_recipe(replace(recipe, compile=compiled), facts).fit
        assert other.margin_bytes is not None
        assert other.margin_bytes[0] == way.margin_bytes
        assert way.instance in said


def test_a_model_without_a_recipe_has_its_money_on_cores_too(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Neuron instance that has a price, with ranks that the library takes."""
    markup = page_of(desk, "model-cores", monkeypatch).read_text("utf-8")
    monkeypatch.chdir(desk)
    said = "".join(Page(markup).text)
    facts = sizes.resolve_facts(
        ModelSpec(source="./Llama-3.1-8B-Instruct"), Settings(cache_dir=desk / "store")
    )
    report = sizes.size_model(
        facts,
        QuantSpec(),
        Bounds(max_input_len=3072, max_output_len=1024, max_batch_size=4),
        target="ml.inf2.8xlarge",
        runtime="neuronx",
        tp=2,
    )
    market = shipped_market()
    ways = sizes.compare_places(
        report, facts, QuantSpec(), market=market, region="us-east-1"
    )

    assert "Cost against margin" in said
    assert [way.instance for way in ways if way.asked] == ["ml.inf2.8xlarge"]
    assert {"ml.inf2.48xlarge", "ml.trn1.32xlarge"} <= {way.instance for way in ways}
    for way in ways:
        row = market.instances[way.instance]
        hour = market.price(row, region="us-east-1")
        assert hour is not None
        assert (way.paid, way.price_basis) == (hour.usd_per_hour, hour.basis)
        assert way.tensor_parallel_size in legal_sizes(row)
        assert way.instance in said
    # An instance whose price is not SageMaker's own says so where it stands.
    assert "; price derived from EC2's" in said


@pytest.mark.parametrize("name", ["cost", "rate"])
def test_every_range_of_a_cost_stands_on_its_page(
    desk: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ranges of the recipe and of each cheaper way, and every note."""
    markup = page_of(desk, name, monkeypatch).read_text("utf-8")
    monkeypatch.chdir(desk)
    said = "".join(Page(markup).text)
    (report,) = printed(desk, name, capsys)
    cost = report["cost"]
    assert run([*COMMANDS[name], "--quiet", "--cache-dir", "store"]) == 0
    table = capsys.readouterr().out.split("\n\n")[0]
    for number in re.findall(r"  +(\d[\d.e+]*)(?=  )", table):
        assert number in said
    for item in report["alternatives"]:
        assert ", ".join(item["setup"]["changes"]) in said
    for note in report["notes"]:
        assert note.replace("`", "") in said
    assert cost["usd_per_hour"] == report["price"]["usd_per_hour"]
    assert report["price"]["source"] in said


def test_every_stage_of_a_plan_stands_on_its_page(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Name, key, state and estimate of each stage; the memory of each artifact."""
    markup = page_of(desk, "plan", monkeypatch).read_text("utf-8")
    monkeypatch.chdir(desk)
    said = "".join(Page(markup).text)
    plan = printed(desk, "plan", capsys)
    for stage in plan["stages"]:
        assert stage["name"] in said
        assert stage["key"].removeprefix("sha256:")[:12] in said
        assert stage["status"] in said
        for size in stage["estimate"].values():
            assert format_bytes(size) in said
    for artifact in plan["artifacts"]:
        assert artifact["name"] in said


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages."""
    yield from browser(tmp_path_factory.mktemp("profile"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1100, 700, 390])
@pytest.mark.parametrize("name", COMMANDS)
def test_pages_can_be_read(
    desk: Path,
    name: str,
    width: int,
    dark: bool,  # noqa: FBT001 - a parameter of the test
    chromium: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No complaint, nothing loaded, no text cut off, faint, or outside the window."""
    page = page_of(desk, name, monkeypatch)
    seen = chromium.look(page, width=width, dark=dark)

    assert seen.complaints == []
    assert seen.requests == [page.as_uri()]
    assert seen.outside == []
    assert seen.faint == []
    assert seen.overflow == 0
    assert seen.num_texts > 5
    assert len(seen.said) > 300


@pytest.mark.parametrize("name", ["plan", "size", "rate"])
def test_paper_is_light(
    desk: Path, name: str, chromium: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system is dark: black on white, and all of it in view."""
    page = page_of(desk, name, monkeypatch)
    seen = chromium.look(page, width=720, dark=True, media="print")

    assert seen.complaints == []
    assert seen.outside == []
    assert seen.faint == []


def way(margin: float, paid: float, verdict: str = FITS, name: str = "a") -> Way:
    """A way with a margin and a cost."""
    return Way(
        instance=name,
        device="A10G",
        num_devices=1,
        tensor_parallel_size=1,
        method="as asked",
        verdict=verdict,
        margin_bytes=round(margin * 1000),
        margin_share=margin,
        paid=Range(low=paid, high=paid),
    )


WAYS = st.lists(
    st.builds(
        way,
        st.integers(-20, 20).map(lambda n: n / 20),
        st.integers(1, 20).map(float),
        st.sampled_from([FITS, UNPROVEN]),
        st.sampled_from(["a", "b", "c", "d"]),
    )
)


@given(WAYS)
@settings(deadline=None)
def test_the_front_is_what_nothing_beats(ways: list[Way]) -> None:
    """Against every pair; each that fits is beaten or matched by one of the front."""
    best = front(ways)
    fitting = [each for each in ways if each.verdict == FITS]

    def beats(one: Way, other: Way) -> bool:
        return (
            one.paid.high <= other.paid.high
            and one.margin_share >= other.margin_share
            and (one.paid.high, one.margin_share)
            != (other.paid.high, other.margin_share)
        )

    for each in best:
        assert not any(beats(other, each) for other in fitting)
    for each in fitting:
        assert any(
            one.paid.high <= each.paid.high and one.margin_share >= each.margin_share
            for one in best
        )
    assert front(reversed(ways)) == best
    assert front(thinned(ways)) == best


def test_cores_are_not_called_devices(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Inferentia2 chip has two cores, and a rank is one of them."""
    said = "".join(Page(page_of(desk, "cores", monkeypatch).read_text("utf-8")).text)

    assert "2 cores of Inferentia2 of ml.inf2.8xlarge" in said
    assert "What each core holds" in said


def test_a_page_may_be_read_by_whom_the_mask_lets(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new page follows the mask; one that was there keeps its mode."""
    monkeypatch.chdir(desk)
    words = [*COMMANDS["no-device"], "--html", "mode.html", "--cache-dir", "store"]
    before = os.umask(0o027)
    try:
        assert run([*words, "--quiet"]) == 0
        assert (desk / "mode.html").stat().st_mode & 0o777 == 0o640
        (desk / "mode.html").chmod(0o604)
        assert run([*words, "--quiet"]) == 0
        assert (desk / "mode.html").stat().st_mode & 0o777 == 0o604
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_without_the_library_nothing_is_begun(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error comes before any work, says the extra, and leaves no page."""
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    monkeypatch.chdir(desk)
    words = ["size", "llama.yaml", "--html", "none.html", "--cache-dir", "store"]

    assert run(words) == 3
    said = capsys.readouterr()
    assert "report.no-plots" in said.err
    assert "lmi-build[report]" in said.err
    assert said.out == ""
    assert not (desk / "none.html").exists()
    monkeypatch.undo()
    require_plots()


def test_what_cannot_fit_is_no_way() -> None:
    assert front([way(0.5, 1.0, UNPROVEN), way(0.5, 1.0, CANNOT)]) == ()
