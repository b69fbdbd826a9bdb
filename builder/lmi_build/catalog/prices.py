"""What an hour of an instance costs, by region and job, read from data."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.instances import USES
from lmi_build.catalog.tables import read_row, read_tables, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = "prices.toml"
ENDPOINT = "endpoint"
TRAINING = "training"
DEFAULT_REGION = "us-east-1"
# Jobs whose price may stand for another's: AWS lists them within a cent of each other
# wherever it lists both.
_ORDER = (ENDPOINT, TRAINING, "processing", "transform")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceTable:
    """
    What one source says of one region.

    Args:
        region: Such as `us-east-1`.
        jobs: Of `USES`, what the prices are for.
        source: Where they were read.
        checked: The day the source names, or that it was read, as `YYYY-MM-DD`.
        usd_per_hour: On-demand price of one instance by its name.
    """

    region: str
    jobs: tuple[str, ...]
    source: str
    checked: str
    usd_per_hour: Mapping[str, int | float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """
    An hour of one instance.

    Args:
        usd_per_hour: On demand.
        region: Where.
        job: What the source gives it for; may be another than was asked for.
        source: Where it was read.
        checked: When.
    """

    usd_per_hour: float
    region: str
    job: str
    source: str
    checked: str


_IN_USE: ContextVar[tuple[PriceTable, ...] | None] = ContextVar("_IN_USE", default=None)


def price_tables() -> tuple[PriceTable, ...]:
    """
    Every known table: those shipped, or those of `using_prices`.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    found = _IN_USE.get()
    return shipped_price_tables() if found is None else found


@contextmanager
def using_prices(tables: tuple[PriceTable, ...]) -> Iterator[None]:
    """
    Take other prices for known while a command runs.

    Args:
        tables: Of two that say something, the later one holds; those shipped as well,
            where they shall be known.
    """
    token = _IN_USE.set(tables)
    try:
        yield
    finally:
        _IN_USE.reset(token)


@cache
def shipped_price_tables() -> tuple[PriceTable, ...]:
    """
    Every table of the package, in the file's order.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return tuple(
        price_table(table, where=f"{FILE}: [{name}]")
        for name, table in read_tables(FILE).items()
    )


def price_table(table: Mapping[str, Any], *, where: str) -> PriceTable:
    """
    One table of prices.

    Args:
        table: As in `prices.toml`.
        where: File and table, for messages.

    Raises:
        ValueError: The table is wrong, with the place.
    """
    prices = read_row(PriceTable, table, where=where)
    if unknown := sorted(set(prices.jobs) - set(USES)):
        raise ValueError(f"{where}, `jobs` has {unknown}; known: {sorted(USES)}")
    if not prices.jobs:
        raise ValueError(f"{where}, `jobs` is empty; known: {sorted(USES)}")
    if not _REGION.fullmatch(prices.region):
        raise ValueError(
            f"{where}, `region` is {shown(prices.region)}, not like us-east-1"
        )
    if not _DATE.fullmatch(prices.checked):
        raise ValueError(
            f"{where}, `checked` is {shown(prices.checked)}, not YYYY-MM-DD"
        )
    for name, number in prices.usd_per_hour.items():
        if not 0 < number < float("inf"):
            raise ValueError(
                f"{where}, `usd_per_hour.{name}` is {number}, not a positive number"
            )
    return prices


def find_price(
    tables: tuple[PriceTable, ...], name: str, *, region: str, job: str = ENDPOINT
) -> Price | None:
    """
    What an hour of an instance costs; None where no table says so.

    The job's own price counts; without one that of another job stands for it, and the
    result names that job.

    Args:
        tables: Of two that say something, the later one holds.
        name: With or without `ml.`.
        region: Such as `us-east-1`.
        job: Of `USES`.
    """
    for wanted in (job, *(other for other in _ORDER if other != job)):
        for table in reversed(tables):
            if table.region != region or wanted not in table.jobs:
                continue
            number = _of(table, name)
            if number is not None:
                return Price(
                    usd_per_hour=float(number),
                    region=region,
                    job=wanted,
                    source=table.source,
                    checked=table.checked,
                )
    return None


def _of(table: PriceTable, name: str) -> int | float | None:
    bare = name.removeprefix("ml.")
    return table.usd_per_hour.get(bare, table.usd_per_hour.get(f"ml.{bare}"))
