"""
The joint histogram of input and output lengths, exact for every integer.

One row per input length: a dictionary while it is sparse, an array of 32-bit counts
once that is smaller. A pair so costs at most the bytes of a dictionary's entry, and
all pairs together at most four bytes for each (input, output) up to the longest.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Seven digits: no model has positions for ten million tokens, so more is a fault of
# the log.
LARGEST_LEN = 9_999_999
# What an entry of a dictionary of small integers costs, against 4 bytes of an array.
_DENSE_PER_ENTRY = 12
_FIRST_DENSE = 64
_TYPECODE = "I"


class JointLengths:
    """
    Counts of (input length, output length), in tokens.

    Two histograms of the same requests are equal, whatever the order they came in.
    """

    __slots__ = ("_rows", "total")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._rows: dict[int, dict[int, int] | array[int]] = {}
        self.total = 0
        for input_len, output_len in pairs:
            self.add(input_len, output_len)

    def add(self, input_len: int, output_len: int, count: int = 1) -> None:
        """
        Count requests.

        Args:
            input_len: Tokens of the prompt, 0 to `LARGEST_LEN`.
            output_len: Tokens of the answer, 0 to `LARGEST_LEN`.
            count: How many such requests.

        Raises:
            ValueError: A length outside of its range.
        """
        if not (0 <= input_len <= LARGEST_LEN and 0 <= output_len <= LARGEST_LEN):
            raise ValueError(f"lengths {input_len}, {output_len} out of range")
        row = self._rows.get(input_len)
        if row is None:
            row = self._rows[input_len] = {}
        if isinstance(row, dict):
            row[output_len] = row.get(output_len, 0) + count
            # Looked at only when the number of entries is a power of two.
            size = len(row)
            if size >= _FIRST_DENSE and not size & (size - 1):
                self._settle(input_len, row)
        else:
            self._add_dense(input_len, row, output_len, count)
        self.total += count

    def add_all(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """
        Count many requests: `add` for each of them, faster.

        Args:
            inputs: Tokens of the prompts.
            outputs: Tokens of the answers, as many.

        Raises:
            ValueError: A length outside of its range; nothing was counted.
        """
        if not inputs:
            return
        lengths = (min(inputs), min(outputs), max(inputs), max(outputs))
        if min(lengths) < 0 or max(lengths) > LARGEST_LEN:
            raise ValueError(f"lengths from {min(lengths)} to {max(lengths)}")
        rows, add = self._rows, self.add
        missed = 0
        for input_len, output_len in zip(inputs, outputs, strict=True):
            # A dense row or a pair seen before changes no size; `add` does the rest.
            try:
                rows[input_len][output_len] += 1
            except (KeyError, IndexError, OverflowError):
                add(input_len, output_len)
                missed += 1
        self.total += len(inputs) - missed

    def _add_dense(
        self, input_len: int, row: array[int], output_len: int, count: int
    ) -> None:
        size = len(row)
        if size <= output_len < 2 * size:
            # A quarter more than asked, so that a rising log does not copy each time.
            row.frombytes(bytes((output_len + 1 + size // 4 - size) * row.itemsize))
        try:
            row[output_len] += count
        except (IndexError, OverflowError):
            # Much longer than the row, or more than an entry holds: sparse again,
            # until there are enough of them.
            sparse = {output: n for output, n in enumerate(row) if n}
            sparse[output_len] = sparse.get(output_len, 0) + count
            self._rows[input_len] = sparse
            self._settle(input_len, sparse)

    def _settle(self, input_len: int, row: dict[int, int]) -> None:
        size = max(row) + 1
        if size <= _DENSE_PER_ENTRY * len(row) and max(row.values()) < 1 << 31:
            dense = array(_TYPECODE, bytes(size * array(_TYPECODE).itemsize))
            for output_len, count in row.items():
                dense[output_len] = count
            self._rows[input_len] = dense

    def merge(self, other: JointLengths) -> None:
        """Count everything that another histogram counted."""
        for input_len in other.inputs():
            for output_len, count in other.row(input_len):
                self.add(input_len, output_len, count)

    def inputs(self) -> list[int]:
        """Every input length that occurs, ascending."""
        return sorted(self._rows)

    def row(self, input_len: int) -> Iterator[tuple[int, int]]:
        """Output lengths of one input length with their counts, ascending."""
        row = self._rows.get(input_len, {})
        cells = sorted(row.items()) if isinstance(row, dict) else enumerate(row)
        return ((output, count) for output, count in cells if count)

    def cells(self) -> Iterator[tuple[int, int, int]]:
        """Every (input length, output length, count), ascending."""
        for input_len in self.inputs():
            for output_len, count in self.row(input_len):
                yield input_len, output_len, count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JointLengths):
            return NotImplemented
        return list(self.cells()) == list(other.cells())

    __hash__ = None  # type: ignore[assignment]

    def rejected(self, max_input_len: int, max_output_len: int) -> int:
        """Requests longer than one of two bounds."""
        accepted = 0
        for input_len, row in self._rows.items():
            if input_len > max_input_len:
                continue
            if isinstance(row, dict):
                accepted += sum(n for o, n in row.items() if o <= max_output_len)
            else:
                accepted += sum(row[: max_output_len + 1])
        return self.total - accepted
