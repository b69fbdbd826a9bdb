"""Laws of the coverage report."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.digest import canonical_json
from lmi_build.quantizers.coverage import Coverage, coverage_notes, merged

EXPERTS = "model.layers.0.block_sparse_moe.experts"


def routed(tokens: list[int], *, total: int) -> Coverage:
    """A layer whose router sent these tokens to its experts."""
    coverage = Coverage(num_tokens=total)
    for index, count in enumerate(tokens):
        for linear in ("w1", "w3", "w2"):
            coverage.add(f"{EXPERTS}.{index}.{linear}", count)
    return coverage


def test_an_even_router_starves_nobody() -> None:
    """Equal shares above the floor are no finding."""
    assert routed([500] * 8, total=2000).findings() == ()


def test_a_starved_expert_is_named_with_its_tokens() -> None:
    """Below a tenth of an even share: the finding names it, the number and a way."""
    (finding,) = routed([4000, 4000, 4000, 90], total=6045).findings()

    assert finding.code == "calibration.starved-experts"
    assert finding.modules == (f"{EXPERTS}.3",)
    assert "1 of 4 experts" in finding.message
    assert "90" in finding.message
    assert "num_samples" in finding.hint


def test_few_tokens_are_few_whatever_the_share() -> None:
    """Sixty-three tokens starve an expert even when that is an even share."""
    (finding,) = routed([63, 64], total=64).findings()

    assert finding.modules == (f"{EXPERTS}.0",)


def test_what_saw_nothing_is_told_first_and_once() -> None:
    """A module without a token is `unseen`, not also starved."""
    coverage = routed([300, 0, 20], total=160)

    first, second = coverage.findings()

    assert first.code == "calibration.unseen"
    assert {f"{EXPERTS}.1.w1", f"{EXPERTS}.1.w2"} < set(first.modules)
    assert "and" in first.message
    assert second.modules == (f"{EXPERTS}.2",)


def test_a_dense_layer_is_never_starved() -> None:
    """Only a router can starve: little text as a whole is another finding's matter."""
    coverage = Coverage(num_tokens=10)
    coverage.add("model.layers.0.mlp.up_proj", 10)

    assert coverage.findings() == ()


def test_findings_become_warnings() -> None:
    """What is starved is told while it is built, with what to try."""
    (note,) = coverage_notes("tiny/quantize", routed([400, 2], total=402))

    assert (note.level, note.code) == ("warning", "calibration.starved-experts")
    assert note.stage == "tiny/quantize"
    assert "quantize.ignore" in note.message


def test_negative_counts_are_a_mistake_of_ours() -> None:
    """Tokens are counted, never taken back."""
    with pytest.raises(ValueError, match="-1"):
        Coverage(num_tokens=4).add("x", -1)


@given(
    parts=st.lists(
        st.dictionaries(st.sampled_from(["a", "b", f"{EXPERTS}.0.w1"]), st.integers(0)),
        max_size=4,
    )
)
def test_counting_in_parts_gives_the_same_report(parts: list[dict[str, int]]) -> None:
    """Blocks before and after a resume add up to one report; it is plain JSON."""
    at_once = Coverage(num_tokens=7)
    for part in reversed(parts):
        for name, count in part.items():
            at_once.add(name, count)

    report = merged(parts, num_tokens=7).report()

    assert report == at_once.report()
    assert json.loads(canonical_json(report)) == report


def test_the_report_shows_each_expert_in_order() -> None:
    """Experts stand by number, beside their even share."""
    report = routed([5] * 11, total=55).report()

    experts = report["experts"]
    assert isinstance(experts, dict)
    assert list(experts[EXPERTS]["tokens"]) == [str(i) for i in range(11)]
    assert experts[EXPERTS]["even_share"] == 5.0
