"""How the traffic of today fits the bounds of yesterday."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.sizing.lengths import LARGEST_LEN
from lmi_build.sizing.traffic import choose, measure

if TYPE_CHECKING:
    from fractions import Fraction

    from lmi_build.sizing.lengths import JointLengths
    from lmi_build.sizing.traffic import Choice, Measures


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """
    A log held against built bounds.

    Args:
        max_input_len: Longest prompt that was built for.
        max_output_len: Longest answer that was built for.
        over_input: Requests with a longer prompt.
        over_output: Requests with a longer answer.
        rejected: Requests with one of them.
        now: The cheapest bounds for this log.
        measures: Of this log.
    """

    max_input_len: int
    max_output_len: int
    over_input: int
    over_output: int
    rejected: int
    now: Choice
    measures: Measures

    @property
    def rejected_share(self) -> float:
        """Share of the requests that these bounds reject."""
        return self.rejected / self.measures.requests

    @property
    def within(self) -> bool:
        """Whether they reject no more than the wanted share, exactly."""
        return self.rejected <= self.now.target * self.measures.requests

    @property
    def capacity(self) -> int:
        """Tokens that these bounds reserve for a request."""
        return self.max_input_len + self.max_output_len


def drift(
    joint: JointLengths, max_input_len: int, max_output_len: int, target: Fraction
) -> Drift:
    """
    Hold a log against bounds.

    Args:
        joint: Lengths of at least one request.
        max_input_len: Longest prompt that was built for.
        max_output_len: Longest answer that was built for.
        target: Share of requests that may be rejected.

    Raises:
        ValueError: An empty histogram, or no such share.
    """
    return Drift(
        max_input_len=max_input_len,
        max_output_len=max_output_len,
        over_input=joint.rejected(max_input_len, LARGEST_LEN),
        over_output=joint.rejected(LARGEST_LEN, max_output_len),
        rejected=joint.rejected(max_input_len, max_output_len),
        now=choose(joint, target),
        measures=measure(joint),
    )
