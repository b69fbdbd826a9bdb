"""Filter, then score: every row with the findings that decided it; pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from lmi_build.advice.rules import RULES, Option
from lmi_build.catalog.systems import load_systems

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lmi_build.advice.question import Question
    from lmi_build.advice.rules import Finding, Rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """
    One row of the answer.

    Args:
        option: Which system, on which device.
        removed: Rules that removed it with their findings, sorted; empty where it
            remains.
        points: Rules that gave points with their findings, sorted.
    """

    option: Option
    removed: tuple[tuple[str, Finding], ...]
    points: tuple[tuple[str, Finding], ...]

    @property
    def score(self) -> int:
        """The sum of its points."""
        return sum(finding.points for _, finding in self.points)


@dataclass(frozen=True, kw_only=True, slots=True)
class Relaxation:
    """
    Wishes that could be dropped.

    Args:
        wishes: Of `Question.wishes`.
        winner: The row that would then be first.
    """

    wishes: tuple[str, ...]
    winner: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """
    Every row, and the way out where none remains.

    Args:
        question: What was asked.
        verdicts: Those that remain first, best first; then those removed, by name.
        relaxations: Where none remains, every smallest set of wishes whose removal
            leaves a row; else empty.
    """

    question: Question
    verdicts: tuple[Verdict, ...]
    relaxations: tuple[Relaxation, ...] = ()

    @property
    def candidates(self) -> tuple[Verdict, ...]:
        """The rows that remain, best first."""
        return tuple(verdict for verdict in self.verdicts if not verdict.removed)

    @property
    def winner(self) -> Verdict | None:
        """The best row, or None where none remains."""
        return self.candidates[0] if self.candidates else None


def all_options() -> tuple[Option, ...]:
    """Every system on every device that it has a row for."""
    return tuple(
        Option(system=system, port=port)
        for system in load_systems().systems.values()
        for port in system.ports
    )


def advise(
    question: Question,
    *,
    options: Sequence[Option] | None = None,
    rules: Sequence[Rule] = RULES,
) -> Answer:
    """
    Judge every row by every rule.

    The answer does not depend on the order of rows or rules: findings are sorted,
    points are summed, and rows of equal score stand by name.

    Args:
        question: What is wished.
        options: The rows; None for the whole catalogue.
        rules: The rules.
    """
    rows = all_options() if options is None else tuple(options)
    verdicts = tuple(sorted(_verdicts(question, rows, rules), key=_rank))
    if any(not verdict.removed for verdict in verdicts):
        return Answer(question=question, verdicts=verdicts)
    relaxations = _relax(question, verdicts, rows, rules)
    return Answer(question=question, verdicts=verdicts, relaxations=relaxations)


def _rank(verdict: Verdict) -> tuple[bool, int, str]:
    removed = bool(verdict.removed)
    return removed, 0 if removed else -verdict.score, verdict.option.name


def _verdicts(
    question: Question, rows: Iterable[Option], rules: Sequence[Rule]
) -> Iterable[Verdict]:
    for option in rows:
        found = sorted(
            (
                (rule.filters, rule.name, finding)
                for rule in rules
                for finding in rule.judge(option, question)
            ),
            key=lambda each: (each[0], each[1], each[2].wishes, each[2].reason),
        )
        yield Verdict(
            option=option,
            removed=tuple((name, finding) for out, name, finding in found if out),
            points=tuple((name, finding) for out, name, finding in found if not out),
        )


def _relax(
    question: Question,
    verdicts: Sequence[Verdict],
    rows: Sequence[Option],
    rules: Sequence[Rule],
) -> tuple[Relaxation, ...]:
    """Every smallest set of wishes without which a row remains, with the best row."""
    sets = {
        frozenset(dropped)
        for verdict in verdicts
        for dropped in product(*(finding.wishes for _, finding in verdict.removed))
    }
    if not sets:
        return ()
    size = min(map(len, sets))
    found = []
    for dropped in sorted(sorted(each) for each in sets if len(each) == size):
        fewer = question
        for wish in dropped:
            fewer = fewer.without(wish)
        best = min(_verdicts(fewer, rows, rules), key=_rank)
        found.append(Relaxation(wishes=tuple(dropped), winner=best.option.name))
    return tuple(found)
