"""What a reader fills: lengths, arrivals, faults."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmi_build.errors import SourceInvalid
from lmi_build.sizing.arrivals import MOST_HOURS, Arrivals
from lmi_build.sizing.lengths import JointLengths
from lmi_build.traffic.faults import Faults


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """
    Where a log says what.

    Args:
        input: Column of the prompt's length; a dot goes into an object.
        output: Column of the answer's length.
        arrival: Column of the time of arrival; None when it is not read.
    """

    input: str
    output: str
    arrival: str | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns that are read."""
        both = (self.input, self.output)
        return both if self.arrival is None else (*both, self.arrival)


@dataclass(kw_only=True, slots=True)
class Tally:
    """
    One log, counted.

    Args:
        joint: Lengths of the rows that have them.
        faults: Rows that have not.
        arrivals: By second since 1970; rows without a time are not in it.
        untimed: Good rows whose time is missing or none.
        unit: What places count: `line` or `row`.
        timed: Whether times of arrival are read.
    """

    joint: JointLengths = field(default_factory=JointLengths)
    faults: Faults = field(default_factory=Faults)
    arrivals: Arrivals = field(default_factory=Arrivals)
    untimed: int = 0
    unit: str = "line"
    timed: bool = False

    @property
    def rows(self) -> int:
        """Rows seen, good or not."""
        return self.joint.total + self.faults.total

    def count(
        self, input_len: int | str, output_len: int | str, second: int | None
    ) -> str:
        """
        Count one row.

        Args:
            input_len: Tokens of the prompt, or the kind of a fault.
            output_len: Tokens of the answer, or the kind of a fault.
            second: When it arrived, if that is known.

        Returns:
            The kind of its fault, which is not counted here; empty for a good row.
        """
        if isinstance(input_len, str):
            return input_len
        if isinstance(output_len, str):
            return output_len
        self.joint.add(input_len, output_len)
        if self.timed:
            self.arrive(second)
        return ""

    def arrive(self, second: int | None, count: int = 1) -> None:
        """
        Count arrivals in one second; None where the time is unknown.

        Raises:
            SourceInvalid: `traffic.no-times`: the column holds something else.
        """
        if second is None:
            self.untimed += count
            return
        try:
            self.arrivals.add(second, count)
        except ValueError as error:
            raise SourceInvalid(
                f"the times of arrival fall into more than {MOST_HOURS:,} different"
                " hours, more than a log has",
                code="traffic.no-times",
                hints=(
                    "name the column of times: `--arrival-column NAME`",
                    "or give the batch: `--concurrency N`",
                ),
            ) from error
