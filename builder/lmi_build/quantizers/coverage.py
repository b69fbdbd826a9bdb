"""
How much calibration text each layer saw.

A layer is calibrated on the tokens that reach it: every token for most, and in a
mixture of experts only those that its router sent. A layer that saw few has statistics
that say little; one that saw none cannot be calibrated at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build.events import StageNote
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lmi_build.digest import JSONValue

# An expert is starved below this share of what an even router would send it ...
_STARVED_SHARE = 0.1
# ... and below this many tokens whatever its share: H of fewer is mostly dampening.
_STARVED_TOKENS = 64
_MAX_NAMES = 3
# `block_sparse_moe.experts.7.w1`, `mlp.experts.7.gate_proj`.
_EXPERT = re.compile(r"(?P<group>.+\.experts)\.(?P<index>\d+)(?P<rest>\..+)?\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Starved:
    """
    A finding: modules that saw too little.

    Args:
        code: `calibration.starved-experts` or `calibration.unseen`.
        modules: Their names, sorted.
        message: What is wrong, with numbers.
        hint: What to try.
    """

    code: str
    modules: tuple[str, ...]
    message: str
    hint: str


@dataclass(kw_only=True, slots=True)
class Coverage:
    """
    Counts tokens by module.

    Args:
        num_tokens: Tokens of the calibration windows together.
        counts: Module name to tokens seen; grows by `add`.
    """

    num_tokens: int
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, num_tokens: int) -> None:
        """
        Note that a module saw `num_tokens` more tokens.

        Args:
            name: Module name, without `.weight`; experts are told apart by the part
                `experts.<index>` of it.
            num_tokens: May be 0: the module is there and was looked at.

        Raises:
            ValueError: A negative number.
        """
        if num_tokens < 0:
            raise ValueError(f"{name} saw {num_tokens} tokens")
        self.counts[name] = self.counts.get(name, 0) + num_tokens

    def findings(self) -> tuple[Starved, ...]:
        """What is wrong, worst first; empty when every module saw enough."""
        unseen = sorted(name for name, count in self.counts.items() if count == 0)
        found = []
        if unseen:
            found.append(
                Starved(
                    code="calibration.unseen",
                    modules=tuple(unseen),
                    message=f"{_listed(unseen)} saw none of the {self.num_tokens:,}"
                    " calibration tokens",
                    hint=_HINT,
                )
            )
        starved = {n: c for n, c in self._starved() if c > 0}
        if starved:
            fewest = min(starved, key=lambda name: (starved[name], name))
            found.append(
                Starved(
                    code="calibration.starved-experts",
                    modules=tuple(sorted(starved)),
                    message=f"{len(starved)} of {self._num_experts()} experts saw"
                    " fewer than 10% of an even share of the tokens, or fewer than"
                    f" {_STARVED_TOKENS}: {_listed(sorted(starved))}; the fewest,"
                    f" {starved[fewest]}, reached `{fewest}`",
                    hint=_HINT,
                )
            )
        return tuple(found)

    def report(self) -> dict[str, JSONValue]:
        """
        Everything counted, as JSON.

        Returns:
            `num_tokens`; `modules`: name to tokens; `experts`: group of experts to the
            tokens of each, in order, with its even share; `findings`.
        """
        return {
            "num_tokens": self.num_tokens,
            "modules": dict(sorted(self.counts.items())),
            "experts": {
                group: {
                    "even_share": round(sum(tokens.values()) / len(tokens), 1),
                    "tokens": {str(at): tokens[at] for at in sorted(tokens)},
                }
                for group, tokens in sorted(self._experts().items())
            },
            "findings": [
                {
                    "code": finding.code,
                    "modules": list(finding.modules),
                    "message": finding.message,
                    "hint": finding.hint,
                }
                for finding in self.findings()
            ],
        }

    def _experts(self) -> dict[str, dict[int, int]]:
        """Group to expert to tokens; an expert saw what its first linear saw."""
        groups: dict[str, dict[int, int]] = {}
        for name, count in self.counts.items():
            match = _EXPERT.match(name)
            if match:
                tokens = groups.setdefault(match["group"], {})
                index = int(match["index"])
                tokens[index] = max(tokens.get(index, 0), count)
        return groups

    def _num_experts(self) -> int:
        return sum(len(tokens) for tokens in self._experts().values())

    def _starved(self) -> Iterable[tuple[str, int]]:
        for group, tokens in self._experts().items():
            even = sum(tokens.values()) / len(tokens)
            floor = max(_STARVED_SHARE * even, _STARVED_TOKENS)
            for index, count in tokens.items():
                if count < floor:
                    yield f"{group}.{index}", count


_HINT = (
    "raise `quantize.calibration.num_samples`, or use text that is more like what the"
    " model was trained on (several topics, languages, code); what stays starved can"
    " be named in `quantize.ignore`"
)


def _listed(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES
    if more > 0:
        return (
            f"{', '.join(f'`{name}`' for name in names[:_MAX_NAMES])} and {more} more"
        )
    return join_words(names, last="and")


def coverage_notes(stage: str, coverage: Coverage) -> Iterator[StageNote]:
    """The findings as warnings that a build shows."""
    for finding in coverage.findings():
        yield StageNote(
            stage=stage,
            level="warning",
            code=finding.code,
            message=f"{finding.message}; {finding.hint}",
        )


def merged(parts: Iterable[Mapping[str, int]], *, num_tokens: int) -> Coverage:
    """
    Coverage of counts kept apart, such as those of blocks done before a resume.

    Args:
        parts: Module name to tokens, of each part.
        num_tokens: Tokens of the calibration windows together.
    """
    whole = Coverage(num_tokens=num_tokens)
    for part in parts:
        for name, count in part.items():
            whole.add(name, count)
    return whole
