"""
The joint histogram of input and output lengths, exact for every integer.

What falls where many requests fall is counted in an array for each input length, four
bytes for each output up to the longest of them. Everything else is kept as it came,
four bytes a request, in arrays that 128 neighbouring input lengths share. So a
request costs at most four bytes however far lengths are spread, and however many there
are, a row costs at most four bytes for each output length.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

# Seven digits: no model has positions for ten million tokens, so more is a fault of
# the log.
LARGEST_LEN = 9_999_999
# A code is the input's place among its neighbours over 24 bits of output; 31 bits.
_OUTPUT_BITS = 24
_OUTPUT_MASK = (1 << _OUTPUT_BITS) - 1
_NEIGHBOUR_BITS = 7
_NEIGHBOUR_MASK = (1 << _NEIGHBOUR_BITS) - 1
_CODE, _WIDE = "I", "Q"
_NONE = array(_CODE)
# Whether a code's lower half comes first; it has four bytes nearly everywhere.
_LITTLE = sys.byteorder == "little" and (_NONE.itemsize, array("H").itemsize) == (4, 2)
# Requests that are kept as they came before it is looked at which of them to count,
# in one array and in all; and by how much more what could not be counted must grow.
_FIRST_LOOK = 4096
_LOOK_EVERY = 1 << 19
_GROWTH = 4
# More of one pair at once than this is worth a dictionary's entry.
_FEW = 16
# Batches with a larger share outside of the counts are kept first and counted later.
_MANY_MISSES = 0.4


class _Kept(dict[int, "Callable[[int], None]"]):
    """Where to keep a code, by the number of its array, which is made on demand."""

    def __init__(self, arrays: dict[int, array[int]]) -> None:
        super().__init__()
        self.arrays = arrays

    def __missing__(self, number: int) -> Callable[[int], None]:
        made = self.arrays[number] = array(_CODE)
        append = self[number] = made.append
        return append

    def replace(self, number: int, codes: array[int]) -> None:
        """Keep other codes instead."""
        self.arrays[number] = codes
        self[number] = codes.append


class JointLengths:
    """
    Counts of (input length, output length), in tokens.

    Two histograms of the same requests are equal, whatever the order they came in.
    """

    __slots__ = (
        "_answers",
        "_counted",
        "_keep",
        "_kept",
        "_limits",
        "_many",
        "_misses",
        "_settled",
        "_since",
        "total",
    )

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._counted: dict[int, array[int]] = {}
        self._kept: dict[int, array[int]] = {}
        self._keep = _Kept(self._kept)
        self._many: dict[int, dict[int, int]] = {}
        self._limits: dict[int, int] = {}
        self._misses = 1.0
        self._since = 0
        # How many requests there were when the last of them was looked at.
        self._settled = 0
        self._answers: tuple[int, dict[int, int]] = (0, {})
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
        self.total += count
        if count > _FEW:
            row = self._many.setdefault(input_len, {})
            row[output_len] = row.get(output_len, 0) + count
            return
        append = self._keep[input_len >> _NEIGHBOUR_BITS]
        code = (input_len & _NEIGHBOUR_MASK) << _OUTPUT_BITS | output_len
        for _ in range(count):
            append(code)
        self._look(count)

    def add_all(
        self, inputs: Sequence[int], outputs: Sequence[int], *, checked: bool = False
    ) -> None:
        """
        Count many requests: `add` for each of them, faster.

        Args:
            inputs: Tokens of the prompts.
            outputs: Tokens of the answers, as many.
            checked: Every length is known to be in its range: a pattern let no other
                through.

        Raises:
            ValueError: A length outside of its range; nothing was counted.
        """
        if not inputs:
            return
        if not checked:
            lengths = (min(inputs), min(outputs), max(inputs), max(outputs))
            if min(lengths) < 0 or max(lengths) > LARGEST_LEN:
                raise ValueError(f"lengths from {min(lengths)} to {max(lengths)}")
        if self._misses < _MANY_MISSES:
            self._count_first(inputs, outputs)
        else:
            keep = self._keep
            for input_len, output_len in zip(inputs, outputs, strict=True):
                keep[input_len >> 7]((input_len & 127) << 24 | output_len)
            self._look(len(inputs))
        self.total += len(inputs)

    def _count_first(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Count what has a place among the counts, and keep the rest."""
        counted, keep = self._counted, self._keep
        missed = 0
        for input_len, output_len in zip(inputs, outputs, strict=True):
            try:
                counted[input_len][output_len] += 1
            except (KeyError, IndexError, OverflowError):
                keep[input_len >> 7]((input_len & 127) << 24 | output_len)
                missed += 1
        self._misses = missed / len(inputs)
        self._look(missed)

    def _look(self, more: int) -> None:
        """See from time to time which of the kept requests are better counted."""
        self._since += more
        if self._since < _LOOK_EVERY:
            return
        self._settle()
        # The next batch tries again, and tells how many found no place.
        self._misses = 0.0
        self._since = 0

    def _settle(self, *, everything: bool = False) -> None:
        """Count what is kept where an array of counts is no larger."""
        if everything and self._settled == self.total:
            return
        for number, codes in list(self._kept.items()):
            if everything or len(codes) >= self._limits.get(number, _FIRST_LOOK):
                left = self._settle_one(number, sorted(codes))
                self._keep.replace(number, array(_CODE, left))
                self._limits[number] = max(_FIRST_LOOK, _GROWTH * len(left))
        self._settled = self.total if everything else self._settled

    def _settle_one(self, number: int, codes: list[int]) -> list[int]:
        """Count what is worth it of ascending codes; returns the others."""
        left: list[int] = []
        for place, end, begin in _slices(codes):
            input_len = (number << _NEIGHBOUR_BITS) + place
            first = place << _OUTPUT_BITS
            counts = self._counted.get(input_len)
            if counts is not None:
                inside = bisect_left(codes, first + len(counts), begin, end)
                self._fill(input_len, codes[begin:inside])
                begin = inside  # noqa: PLW2901 - the others begin there
            size = first + (0 if counts is None else len(self._counted[input_len]))
            fit = _fitting(codes, begin, end, size)
            if fit > begin:
                more = codes[fit - 1] + 1 - size
                counts = self._counted.setdefault(input_len, array(_CODE))
                counts.frombytes(bytes(counts.itemsize * more))
                self._fill(input_len, codes[begin:fit])
            left.extend(codes[fit:end])
        return left

    def _fill(self, input_len: int, codes: list[int]) -> None:
        """Count codes of one input length that have a place."""
        counts = self._counted[input_len]
        for code in codes:
            try:
                counts[code & _OUTPUT_MASK] += 1
            except OverflowError:
                counts = self._counted[input_len] = array(_WIDE, counts)
                counts[code & _OUTPUT_MASK] += 1

    def merge(self, other: JointLengths) -> None:
        """Count everything that another histogram counted."""
        for input_len, output_len, count in other.cells():
            self.add(input_len, output_len, count)

    def rows(
        self, *, descending: bool = False
    ) -> Iterator[tuple[int, list[int], list[int] | None]]:
        """
        Every input length with its requests.

        Args:
            descending: From the longest input to the shortest; else from the shortest.

        Yields:
            The input length; output lengths, ascending, of which some may stand there
            several times; and how many requests each stands for, None for one each.
        """
        self._settle(everything=True)
        numbers = set(self._kept)
        numbers |= {length >> _NEIGHBOUR_BITS for length in self._counted}
        numbers |= {length >> _NEIGHBOUR_BITS for length in self._many}
        for number in sorted(numbers, reverse=descending):
            codes = self._kept.get(number, _NONE)
            decoded = _outputs(codes)
            kept = {place: decoded[begin:end] for place, end, begin in _slices(codes)}
            first = number << _NEIGHBOUR_BITS
            places = range(_NEIGHBOUR_MASK + 1)
            for place in reversed(places) if descending else places:
                row = self._row(first + place, kept.get(place, []))
                if row is not None:
                    yield (first + place, *row)

    def _row(
        self, input_len: int, kept: list[int]
    ) -> tuple[list[int], list[int] | None] | None:
        counts, many = self._counted.get(input_len), self._many.get(input_len)
        if many is not None:
            cells = dict(many)
            for output in kept:
                cells[output] = cells.get(output, 0) + 1
            for output, count in enumerate(counts or ()):
                if count:
                    cells[output] = cells.get(output, 0) + count
            return sorted(cells), [cells[output] for output in sorted(cells)]
        if counts is None:
            return (kept, None) if kept else None
        outputs = [output for output, count in enumerate(counts) if count]
        found = [count for count in counts if count]
        # What is kept lies beyond the counts, or it would have been counted.
        return outputs + kept, found + [1] * len(kept)

    def answers(self) -> dict[int, int]:
        """Requests by output length; found once, until more are counted."""
        if self._answers[0] != self.total:
            found: Counter[int] = Counter()
            for _, outputs, counts in self.rows():
                if counts is None:
                    found.update(outputs)
                    continue
                for output_len, count in zip(outputs, counts, strict=True):
                    found[output_len] += count
            self._answers = (self.total, dict(found))
        return self._answers[1]

    def cells(self) -> Iterator[tuple[int, int, int]]:
        """Every (input length, output length, count), ascending."""
        for input_len, outputs, counts in self.rows():
            if counts is None:
                for output_len, same in groupby(outputs):
                    yield input_len, output_len, sum(1 for _ in same)
                continue
            pairs = zip(outputs, counts, strict=True)
            for output_len, group in groupby(pairs, key=lambda pair: pair[0]):
                yield input_len, output_len, sum(count for _, count in group)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JointLengths):
            return NotImplemented
        return list(self.cells()) == list(other.cells())

    __hash__ = None  # type: ignore[assignment]

    def rejected(self, max_input_len: int, max_output_len: int) -> int:
        """Requests longer than one of two bounds."""
        accepted = 0
        for input_len, outputs, counts in self.rows():
            if input_len > max_input_len:
                break
            inside = bisect_left(outputs, max_output_len + 1)
            accepted += inside if counts is None else sum(counts[:inside])
        return self.total - accepted


def _fitting(codes: list[int], begin: int, end: int, size: int) -> int:
    """
    End of the most of ascending codes that are no fewer than the places they need.

    Args:
        codes: Of one input length from `begin` to `end`.
        begin: The first, none below `size`.
        end: After the last.
        size: The first code that has no place.
    """
    while end > begin and codes[end - 1] + 1 - size > end - begin:
        # Fewer have fewer places yet: only what lies below those can be among them.
        end = min(end - 1, bisect_left(codes, size + end - begin - 1, begin, end))
    return end


def _outputs(codes: array[int]) -> list[int]:
    """Output lengths of codes, in their order."""
    if _LITTLE and codes:
        parts = memoryview(codes).cast("B")
        # Below 2^16 a length is the lower half of its code, which needs no sum.
        if bytes(parts[2::4]).count(0) == len(codes):
            return parts.cast("H")[::2].tolist()
    return [code & _OUTPUT_MASK for code in codes]


def _slices(codes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Place among neighbours, end and begin of each run of ascending codes."""
    begin = 0
    while begin < len(codes):
        place = codes[begin] >> _OUTPUT_BITS
        end = bisect_left(codes, (place + 1) << _OUTPUT_BITS, begin)
        yield place, end, begin
        begin = end
