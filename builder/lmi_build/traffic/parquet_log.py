"""A Parquet log: its columns counted batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid, ToolMissing
from lmi_build.traffic.faults import length_or_fault
from lmi_build.traffic.times import second_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lmi_build.traffic.tally import Columns, Tally

_BATCH_ROWS = 1 << 17
MAGIC = b"PAR1"


def read_parquet(
    file: Any,
    name: str,
    tally: Tally,
    *,
    choose: Callable[[Sequence[str]], Columns],
    length: Callable[[Any], int | str] = length_or_fault,
) -> None:
    """
    Count a Parquet file.

    Args:
        file: Open for reading, seekable.
        name: What messages call it.
        tally: What is filled.
        choose: Columns to read, of those that there are.
        length: Length of a value, or the kind of its fault.

    Raises:
        SourceInvalid: `traffic.unreadable`, and what `choose` raises.
        ToolMissing: `traffic.parquet`: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ToolMissing(
            f"reading `{name}` needs the package `pyarrow`",
            code="traffic.parquet",
            hints=("pip install 'lmi-build[parquet]'", "or convert it to CSV"),
        ) from error
    try:
        with parquet.ParquetFile(file) as log:
            columns = choose(list(_paths(log.schema_arrow)))
            tally.unit, tally.timed = "row", columns.arrival is not None
            before = 0
            wanted = list(dict.fromkeys(columns.wanted))
            for batch in log.iter_batches(_BATCH_ROWS, columns=wanted):
                table = pa.Table.from_batches([batch])
                while any(pa.types.is_struct(field.type) for field in table.schema):
                    table = table.flatten()
                _count(table, columns, tally, before=before, length=length)
                before += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise SourceInvalid(
            f"`{name}` is no whole Parquet file: {type(error).__name__}",
            code="traffic.unreadable",
            hints=("copy it again and compare sizes",),
        ) from error


def _paths(fields: Iterable[Any], before: str = "") -> Iterator[str]:
    """Every column by its path; a list is one, and an object is each of its parts."""
    from pyarrow.types import is_struct

    for field in fields:
        if is_struct(field.type):
            parts = (field.type.field(i) for i in range(field.type.num_fields))
            yield from _paths(parts, f"{before}{field.name}.")
        else:
            yield f"{before}{field.name}"


def _count(
    table: Any,
    columns: Columns,
    tally: Tally,
    *,
    before: int,
    length: Callable[[Any], int | str],
) -> None:
    pairs = table.select([columns.input, columns.output])
    # Rows of lists cannot be grouped.
    plain = not any(hasattr(field.type, "value_field") for field in pairs.schema)
    if plain and length is length_or_fault and not tally.timed:
        pairs = pairs.rename_columns(["input", "output"])
        rows = pairs.group_by(["input", "output"]).aggregate([([], "count_all")])
        found = zip(*(rows.column(i).to_pylist() for i in range(3)), strict=True)
        faults = set()
        for input_value, output_value, count in found:
            input_len, output_len = length(input_value), length(output_value)
            if isinstance(input_len, int) and isinstance(output_len, int):
                tally.joint.add(input_len, output_len, count)
            else:
                fault = input_len if isinstance(input_len, str) else str(output_len)
                tally.faults.count(fault, count)
                faults.add(fault)
        if any(tally.faults.wants_place(fault) for fault in faults):
            _locate(pairs, tally, before)
        return
    values = (table.column(name).to_pylist() for name in columns.wanted)
    for row, (input_value, output_value, *time) in enumerate(
        zip(*values, strict=True), before + 1
    ):
        second = second_of(time[0]) if time else None
        fault = tally.count(length(input_value), length(output_value), second)
        if fault:
            tally.faults.count(fault)
            tally.faults.place(fault, row)


def _locate(pairs: Any, tally: Tally, before: int) -> None:
    both = (pairs.column(i).to_pylist() for i in range(2))
    for row, values in enumerate(zip(*both, strict=True), before + 1):
        lengths = map(length_or_fault, values)
        fault = next((found for found in lengths if isinstance(found, str)), None)
        if fault is not None:
            tally.faults.place(fault, row)
