"""The report page: one safe, small, stable file that says every number it draws."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromium import Browser, browser
from lmi_build.checkpoint.layers import Layers, layers_to_bytes
from lmi_build.digest import digest_bytes
from lmi_build.errors import VerifyFailed
from lmi_build.numerics.intervals import Interval
from lmi_build.package.worker import make_manifest
from lmi_build.report.charts import decades
from lmi_build.report.data import Answer
from lmi_build.report.layers_section import place
from lmi_build.report.load import report_data
from lmi_build.report.markup import number
from lmi_build.report.page import render_report
from lmi_build.values.manifest import FileEntry, Manifest
from packed import sample_params
from report_pages import KINDS, Page, layers, reading, report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTILE = (
    "</title></style><script>alert(1)</script>",
    '" onload="alert(1)',
    "' onmouseover='x",
    "<!-- ",
    "&lt;b&gt;",
    "\u202egpj.exe",
    "a\x00b\x1b[2J",
    "]]><![CDATA[",
)


def test_same_data_gives_the_same_bytes() -> None:
    """Rendering is a function of its data."""
    assert render_report(report()) == render_report(report())


def test_page_is_whole_and_says_what_it_draws() -> None:
    """Sections, the verdict, every measure with its interval and every table."""
    page = Page(render_report(report()))
    said = " ".join(page.text)

    assert page.headings[0] == "h1"
    assert page.tags.count("h1") == 1
    for wanted in (
        "1 quality gate met",
        "0.0700",
        "0.0600 to 0.0800",
        "gate: at most 0.160",
        "model.layers.2.mlp.down_proj",
        "2 of 8 experts saw too little",
        "4.25",
        "40%",
        "1.5 s",
        "torch",
    ):
        assert wanted in said, wanted


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_leave_their_place(name: str) -> None:
    """Whatever a model or a recipe is called, the page has the tags of a plain one."""
    plain = Page(render_report(report(layers=layers(3, name="plain."))))
    page = render_report(
        report(
            name=name,
            summary=name,
            facts=((name, name), ("Bounds", name)),
            answers=(Answer(prompt=name, text=name),),
            layers=layers(3, kinds=tuple(name + kind for kind in KINDS), name=name),
            tools=((name, name),),
            digests=((name, name),),
        )
    )
    read = Page(page)

    assert read.tags == plain.tags
    assert "\u202e" not in page
    assert "\x00" not in page
    page.encode()


@settings(max_examples=50, deadline=None)
@given(name=st.text(st.characters(), max_size=40))
def test_any_name_keeps_the_page_whole(name: str) -> None:
    """Halves of pairs, controls, quotes: the page parses and can be stored."""
    page = render_report(report(name=name, facts=((name, name),)))
    Page(page)

    page.encode()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages."""
    yield from browser(tmp_path_factory.mktemp("profile"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
def test_the_page_can_be_read(
    tmp_path: Path,
    width: int,
    dark: bool,  # noqa: FBT001 - a parameter of the test
    chromium: Browser,
) -> None:
    """No complaint, nothing loaded, no text cut off, faint, or outside the window."""
    page = tmp_path / "page.html"
    page.write_text(render_report(report(layers=layers(24))), "utf-8")
    seen = chromium.look(page, width=width, dark=dark)

    assert seen.complaints == []
    assert seen.requests == [page.as_uri()]
    assert seen.outside == []
    assert seen.faint == []
    assert seen.overflow == 0
    assert "model.layers.23.mlp.down_proj" in seen.said


def test_nothing_comes_from_elsewhere() -> None:
    """No script, no link, no font, no image; the policy forbids them as well."""
    page = render_report(report())

    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<img", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("made", "limit"),
    [
        (layers(80, kinds=tuple(f"mlp.kind{n}_proj" for n in range(7))), 100_000),
        (
            layers(
                60,
                kinds=tuple(
                    f"mlp.experts.{n}.{kind}_proj"
                    for n in range(64)
                    for kind in ("gate", "up", "down")
                ),
            ),
            100_000,
        ),
        (layers(2000), 200_000),
        (layers(2, kinds=tuple(f"odd.kind{n}" for n in range(3000))), 200_000),
    ],
)
def test_large_models_make_small_pages(made: Layers, limit: int) -> None:
    """560 layers, 11,520 experts, 2000 blocks, 3000 kinds."""
    page = render_report(report(layers=made))
    Page(page)

    assert len(page.encode()) < limit


@pytest.mark.parametrize(
    "empty",
    [
        {"readings": (), "answers": (), "evidence": ""},
        {"layers": None},
        {"layers": Layers(layers=(), classes=())},
        {"sizes": ()},
        {"stages": ()},
        {"sizes": (("Artifact", 0),)},
        {"readings": (reading(value=0.0, interval=None, allowed=None, met=None),)},
    ],
)
def test_what_is_not_known_is_left_out(empty: dict[str, object]) -> None:
    """A page without a part has no heading for it and is still whole."""
    Page(render_report(report(**empty)))


@pytest.mark.parametrize(
    ("readings", "verdict"),
    [
        ((), "Not verified"),
        ((reading(allowed=None, met=None),), "no quality gate set"),
        ((reading(), reading(weak=True)), "2 quality gates met, on weak evidence"),
        ((reading(), reading(met=False)), "1 of 2 quality gates missed"),
    ],
)
def test_the_verdict_is_the_gates(readings: tuple[object, ...], verdict: str) -> None:
    said = " ".join(Page(render_report(report(readings=readings))).text)

    assert verdict in said


def test_places_of_layers() -> None:
    """The first number is the block; experts are one kind."""
    assert place("model.layers.12.mlp.experts.7.w1") == (12, "mlp.experts.*.w1")
    assert place("transformer.h.3.attn.c_attn") == (3, "attn.c_attn")
    assert place("lm_head") == (-1, "lm_head")


@given(st.lists(st.floats(1e-30, 1e9), min_size=1))
def test_axes_hold_every_error(errors: list[float]) -> None:
    """The span is at least one power of ten and reaches the largest error."""
    low, high = decades(errors)

    assert high - low >= 1
    assert max(errors) <= 10**high * (1 + 1e-9)
    assert min(errors) >= 10**low * (1 - 1e-9) or high - low == 12


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0, 0.0721, 1.0, 123.456, 1e-5, 8.64e-4, 2e6)] == [
        "0",
        "0.0721",
        "1.00",
        "123",
        "1.00e-5",
        "8.64e-4",
        "2.00e6",
    ]


def _manifest(table: bytes) -> Manifest:
    entry = FileEntry(path="layers.json", size=len(table), digest=digest_bytes(table))
    return make_manifest(sample_params(), [entry], ledger=None)


def _verification(manifest: str) -> bytes:
    drift = {
        "num_windows": 2,
        "num_tokens": 64,
        "interval_level": 0.95,
        "mean_kl": 0.1,
        "mean_kl_interval": asdict(Interval(low=0.05, high=0.15)),
        "top1_agreement": 0.9,
        "top1_agreement_interval": None,
        "perplexity_ratio": 1.1,
        "perplexity_ratio_interval": None,
        "max_abs_logit_error": 3.0,
        "reference_perplexity": 10.0,
        "engine_perplexity": 11.0,
    }
    gate = {"gate": "max_mean_kl", "allowed": 0.12, "met": True, "weak": True}
    return json.dumps(
        {"manifest": manifest, "drift": drift, "gates": [gate], "answers": []}
    ).encode()


def test_a_verification_is_read_with_its_gates() -> None:
    """Value, interval, gate and weakness arrive; perplexities stand in the text."""
    table = layers_to_bytes(layers(2))
    manifest = _manifest(table)
    data = report_data(
        manifest.to_bytes(), layers=table, verification=_verification(manifest.digest)
    )
    first = data.readings[0]

    assert (first.value, first.allowed, first.met, first.weak) == (
        0.1,
        0.12,
        True,
        True,
    )
    assert first.interval == Interval(low=0.05, high=0.15)
    assert "11.000 over 10.000" in data.readings[2].meaning
    assert data.layers == layers(2)
    Page(render_report(data))


def test_a_verification_of_another_artifact_is_not_shown() -> None:
    """A report beside the artifact may be old; its digest tells."""
    table = layers_to_bytes(layers(2))
    for other in (_verification("sha256:" + "0" * 64), b"no json", b"[]"):
        data = report_data(
            _manifest(table).to_bytes(), layers=table, verification=other
        )

        assert data.readings == ()


def test_a_changed_table_is_refused() -> None:
    """`layers.json` is read only when it is the one that the manifest names."""
    table = layers_to_bytes(layers(2))
    with pytest.raises(VerifyFailed) as caught:
        report_data(_manifest(table).to_bytes(), layers=table + b" ", verification=None)

    assert caught.value.code == "verify.file-changed"
