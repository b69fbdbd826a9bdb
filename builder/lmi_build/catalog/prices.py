"""What an hour of an instance costs, by region and job, read from data."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.instances import USES
from lmi_build.catalog.tables import read_row, read_tables, shown
from lmi_build.values.ranges import Range

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FILE = "prices.toml"
ENDPOINT = "endpoint"
TRAINING = "training"
DEFAULT_REGION = "us-east-1"
STUDIO = "studio"
# What SageMaker has a price for: its uses, and its notebooks, which need no endpoint.
PRICED = (*USES, STUDIO)
# The day that prices of every shipped instance were last looked for.
SEARCHED = "2026-11-22"
# Who asks a price, and how it is bought. Only SageMaker's own is taken as it stands.
SAGEMAKER = "sagemaker"
EC2 = "ec2"
CAPACITY_BLOCK = "capacity-block"
BASES = (SAGEMAKER, EC2, CAPACITY_BLOCK)
# Jobs whose price may stand for another's: AWS lists them within a cent of each other
# wherever it lists both.
_ORDER = (ENDPOINT, TRAINING, "processing", "transform", STUDIO)
_FORMS = {EC2: "on demand", CAPACITY_BLOCK: "for Capacity Blocks, bought ahead"}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceTable:
    """
    What one source says of one region.

    Args:
        region: Such as `us-east-1`.
        source: Where they were read.
        checked: The day the source names, or that it was read, as `YYYY-MM-DD`.
        usd_per_hour: Price of one instance by its name.
        jobs: Of `PRICED`, what SageMaker's prices are for; none for other bases.
        basis: Of `BASES`: SageMaker's price on demand, EC2's on demand, or that of
            EC2's Capacity Blocks for ML, which are bought ahead by the day.
    """

    region: str
    source: str
    checked: str
    usd_per_hour: Mapping[str, int | float]
    jobs: tuple[str, ...] = ()
    basis: str = SAGEMAKER


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """
    An hour of one instance.

    Args:
        usd_per_hour: What SageMaker asks; one number where it was published, else
            derived from EC2's.
        listed_usd_per_hour: What the source says.
        basis: Of `BASES`, what the source says it of.
        region: Where.
        job: What it is for; may be another than was asked for.
        source: Where it was read.
        checked: When.
    """

    usd_per_hour: Range
    listed_usd_per_hour: float
    basis: str
    region: str
    job: str
    source: str
    checked: str

    @property
    def derived(self) -> bool:
        """Whether it stands on EC2's price."""
        return self.basis != SAGEMAKER

    @property
    def words(self) -> str:
        """The price in words, such as `1.408 USD an hour on demand (2026-04-21)`."""
        listed = f"{self.listed_usd_per_hour:g}"
        if not self.derived:
            return f"{listed} USD an hour on demand ({self.checked})"
        low, high = self.usd_per_hour.low, self.usd_per_hour.high
        return (
            f"{low:.4g} to {high:.4g} USD an hour, derived from the {listed} that EC2"
            f" asks {_FORMS[self.basis]} ({self.checked})"
        )


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
    if prices.basis not in BASES:
        raise ValueError(
            f"{where}, `basis` is {shown(prices.basis)}; known: {list(BASES)}"
        )
    if unknown := sorted(set(prices.jobs) - set(PRICED)):
        raise ValueError(f"{where}, `jobs` has {unknown}; known: {sorted(PRICED)}")
    if prices.basis == SAGEMAKER and not prices.jobs:
        raise ValueError(f"{where} names no `jobs`; known: {sorted(PRICED)}")
    if prices.basis != SAGEMAKER and prices.jobs:
        raise ValueError(
            f"{where} names `jobs`, which EC2's prices do not have; leave them out, or"
            f' leave out `basis = "{prices.basis}"`'
        )
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
    result names that job. Without any price of SageMaker's the result is derived from
    EC2's (`markups`), from that on demand before that of a block.

    Args:
        tables: Of two that say something, the later one holds.
        name: With or without `ml.`.
        region: Such as `us-east-1`.
        job: Of `PRICED`.
    """
    here = [table for table in reversed(tables) if table.region == region]
    for wanted in (job, *(other for other in _ORDER if other != job)):
        asked = (table for table in here if wanted in table.jobs)
        if (found := _first(asked, name)) is not None:
            return _price(*found, job=wanted)
    for basis in (EC2, CAPACITY_BLOCK):
        asked = (table for table in here if table.basis == basis)
        if (found := _first(asked, name)) is not None:
            return _price(*found, job=job)
    return None


@cache
def markups() -> Mapping[str, Range]:
    """
    What SageMaker's price is over EC2's, least and most, by the basis of EC2's.

    On demand these are the ends of all ratios in the shipped tables: every price of
    SageMaker's of an instance and region that EC2's on-demand price is known for. A
    user's tables do not move them: a negotiated price is no price list. No instance has
    both a block's price and that of SageMaker's counterpart, the training plan, so
    there the plan is taken to cost at least what the block does, and at most as much
    above it as anything on demand (docs/adr/0021-derived-prices.md).
    """
    ratios = [ratio for _, ratio in price_ratios(shipped_price_tables())]
    on_demand = Range(low=min(ratios), high=max(ratios))
    return MappingProxyType(
        {EC2: on_demand, CAPACITY_BLOCK: Range(low=1.0, high=on_demand.high)}
    )


def price_ratios(tables: tuple[PriceTable, ...]) -> tuple[tuple[str, float], ...]:
    """
    SageMaker's price over EC2's on demand, wherever both are known.

    Args:
        tables: Of EC2's that say something of one instance, the later one holds.

    Returns:
        Names without `ml.`, one entry for each price of SageMaker's.
    """
    below = {
        (table.region, name.removeprefix("ml.")): float(number)
        for table in tables
        if table.basis == EC2
        for name, number in table.usd_per_hour.items()
    }
    return tuple(
        (bare, number / below[table.region, bare])
        for table in tables
        if table.basis == SAGEMAKER
        for name, number in table.usd_per_hour.items()
        if (table.region, bare := name.removeprefix("ml.")) in below
    )


def _price(table: PriceTable, number: float, *, job: str) -> Price:
    one = Range(low=1.0, high=1.0)
    factor = one if table.basis == SAGEMAKER else markups()[table.basis]
    return Price(
        usd_per_hour=factor.times(number),
        listed_usd_per_hour=number,
        basis=table.basis,
        region=table.region,
        job=job,
        source=table.source,
        checked=table.checked,
    )


def _first(tables: Iterable[PriceTable], name: str) -> tuple[PriceTable, float] | None:
    """The first table that has an instance, with what it says."""
    bare = name.removeprefix("ml.")
    for table in tables:
        found = table.usd_per_hour.get(bare, table.usd_per_hour.get(f"ml.{bare}"))
        if found is not None:
            return table, float(found)
    return None
