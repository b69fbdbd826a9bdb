"""Laws of the advisor: order means nothing, and no wish adds a candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from lmi_build.advice.advisor import advise, all_options
from lmi_build.advice.question import EVENNESS, GOALS, Question
from lmi_build.advice.rules import RULES
from lmi_build.catalog.instances import instances
from lmi_build.catalog.systems import (
    DEVICES,
    FEATURES,
    LIVES,
    TECHNIQUES,
    load_systems,
)

if TYPE_CHECKING:
    from lmi_build.advice.advisor import Answer
    from lmi_build.advice.rules import Option, Rule

FAMILIES = sorted(load_systems().families)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Any question that the command line can ask."""
    question = Question(
        family=draw(st.sampled_from(["", *FAMILIES])),
        device=draw(st.sampled_from(["", *DEVICES])),
        technique=draw(st.sampled_from(["", *TECHNIQUES])),
        features=tuple(sorted(draw(st.sets(st.sampled_from(sorted(FEATURES)))))),
        life=draw(st.sampled_from(["", *LIVES])),
        built=draw(st.booleans()),
        goal=draw(st.sampled_from(["", *GOALS])),
        traffic=draw(st.sampled_from(EVENNESS)),
        spread=draw(st.none() | st.floats(1, 100)),
        concurrency=draw(st.integers(0, 256)),
    )
    row = draw(st.none() | st.sampled_from(list(instances().values())))
    if row is None:
        return question
    device = "cpu" if row.accelerator == "none" else row.accelerator
    return replace(
        question,
        instance=row.name,
        instance_device=device,
        compute_capability=row.compute_capability,
    )


def names(answer: Answer) -> set[str]:
    """The rows that remain."""
    return {verdict.option.name for verdict in answer.candidates}


@given(questions(), st.permutations(all_options()), st.permutations(RULES))
def test_order_means_nothing(
    question: Question, options: list[Option], rules: list[Rule]
) -> None:
    """Rows and rules in any order give the same answer, word for word."""
    shuffled = advise(question, options=options, rules=rules)

    assert shuffled == advise(question)


@given(questions())
def test_a_wish_never_adds_a_candidate(question: Question) -> None:
    """Whoever wishes less keeps every row."""
    kept = names(advise(question))

    for wish in question.wishes:
        assert kept <= names(advise(question.without(wish)))


@given(questions())
def test_some_row_remains_or_the_fewest_wishes_to_drop_are_named(
    question: Question,
) -> None:
    """An answer always leads on; what it says to drop is enough, and no set is less."""
    answer = advise(question)

    assert (answer.winner is None) == bool(answer.relaxations)
    for relaxation in answer.relaxations:
        fewer = question
        for wish in relaxation.wishes:
            fewer = fewer.without(wish)
        winner = advise(fewer).winner
        assert winner is not None
        assert winner.option.name == relaxation.winner
        for wish in relaxation.wishes:
            one_back = question
            for other in relaxation.wishes:
                if other != wish:
                    one_back = one_back.without(other)
            assert advise(one_back).winner is None


@given(questions())
def test_every_row_is_told_why(question: Question) -> None:
    """Every row is in the answer, and every finding has a reason and a dated source."""
    answer = advise(question)

    assert len(answer.verdicts) == len(all_options())
    for verdict in answer.verdicts:
        for _, finding in (*verdict.removed, *verdict.points):
            assert finding.reason
            assert finding.source.text
            assert finding.source.date
        for _, finding in verdict.removed:
            assert set(finding.wishes) <= set(question.wishes)
            assert finding.wishes


@given(questions())
def test_what_ranks_never_removes(question: Question) -> None:
    """Goal, traffic, spread and concurrency change no candidate."""
    plain = replace(question, goal="", traffic="unknown", spread=None, concurrency=0)

    assert names(advise(question)) == names(advise(plain))
