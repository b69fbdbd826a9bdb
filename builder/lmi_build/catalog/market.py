"""
Instances, devices and prices as one value, with a user's own over those shipped.

A user's file has three tables of tables, each of the form of the shipped file:

```toml
[instances.g9]             # as in instances.toml
[devices."RTX 9000"]       # as in devices.toml
[prices.negotiated]        # as in prices.toml
```

Every part may be left out; an empty file changes nothing. A size, a device or a price
that both have is the user's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.devices import Device, device_row, devices
from lmi_build.catalog.instances import Instance, family_rows, shipped_instances
from lmi_build.catalog.prices import (
    ENDPOINT,
    Price,
    PriceTable,
    find_price,
    price_table,
    shipped_price_tables,
)
from lmi_build.catalog.tables import parse_tables, shown
from lmi_build.errors import UsageInvalid
from lmi_build.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PARTS = ("instances", "devices", "prices")


@dataclass(frozen=True, kw_only=True, slots=True)
class Market:
    """
    What can be rented, what it can do, and what it costs.

    Args:
        instances: By full name.
        devices: Peak rates by name.
        prices: Of two tables that say something, the later one holds.
    """

    instances: Mapping[str, Instance]
    devices: Mapping[str, Device]
    prices: tuple[PriceTable, ...]

    def instance(self, name: str) -> Instance | None:
        """An instance by its name, with or without `ml.`."""
        return self.instances.get(name if name.startswith("ml.") else f"ml.{name}")

    def device(self, instance: Instance) -> Device | None:
        """Peak rates of an instance's device, where a source was found."""
        return self.devices.get(instance.rates)

    def price(
        self, instance: Instance, *, region: str, job: str = ENDPOINT
    ) -> Price | None:
        """What an hour costs; see `prices.find_price`."""
        return find_price(self.prices, instance.name, region=region, job=job)

    def regions(self, instance: Instance) -> tuple[str, ...]:
        """Regions that some price of an instance is known for, sorted."""
        named = {table.region for table in self.prices}
        return tuple(
            region
            for region in sorted(named)
            if self.price(instance, region=region) is not None
        )


@cache
def shipped_market() -> Market:
    """
    The data of the package.

    Raises:
        ValueError: A data file is wrong; a fault of the package.
    """
    return Market(
        instances=shipped_instances(),
        devices=devices(),
        prices=shipped_price_tables(),
    )


def overlay(base: Market, text: str, name: str) -> Market:
    """
    A user's tables over others.

    Args:
        base: What they lie over.
        text: TOML.
        name: What messages call it, such as its path.

    Raises:
        ValueError: The text is wrong, with file, table and key.
    """
    parts = parse_tables(text, name)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"{name} has {unknown}; known: {list(PARTS)}")
    rows = {part: _rows(parts.get(part, {}), part, name) for part in PARTS}
    added = {
        row.name: row
        for family, (table, where) in rows["instances"].items()
        for row in family_rows(family, table, where=where)
    }
    rates = {
        key: device_row(table, where=where)
        for key, (table, where) in rows["devices"].items()
    }
    prices = tuple(
        price_table(table, where=where) for table, where in rows["prices"].values()
    )
    known = {**base.instances, **added}
    for table, (_, where) in zip(prices, rows["prices"].values(), strict=True):
        for row in table.usd_per_hour:
            _refuse_nobodys(row, known, f"{where}, `usd_per_hour.{row}`")
    return Market(
        instances=MappingProxyType(known),
        devices=MappingProxyType({**base.devices, **rates}),
        prices=(*base.prices, *prices),
    )


def _refuse_nobodys(row: str, known: Mapping[str, Instance], where: str) -> None:
    """Refuse a price that no instance would ever be looked up by."""
    name = row if row.startswith("ml.") else f"ml.{row}"
    if name in known:
        return
    near = did_you_mean(name, tuple(known))
    raise ValueError(
        f"{where}: the catalogue has no instance `{name}`; "
        + (f"did you mean `{near}`?" if near else "add its family: [instances.NAME]")
    )


def _rows(
    part: Mapping[str, Any], kind: str, name: str
) -> dict[str, tuple[Mapping[str, Any], str]]:
    """The tables of one part, each with its place."""
    found: dict[str, tuple[Mapping[str, Any], str]] = {}
    for key, table in part.items():
        if not isinstance(table, dict):
            raise ValueError(  # noqa: TRY004 - one error for all that is wrong
                f"{name}: [{kind}], `{key}` is {shown(table)}, not a table such as"
                f" [{kind}.NAME]"
            )
        found[key] = (table, f"{name}: [{kind}.{key}]")
    return found


def read_market(path: Path | None) -> Market:
    """
    The data of the package, with a user's file over it.

    Args:
        path: TOML; None for the data of the package alone.

    Raises:
        UsageInvalid: `catalog.invalid`, with file, table and key, or
            `catalog.unreadable`.
    """
    base = shipped_market()
    if path is None:
        return base
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageInvalid(
            f"`{path}` cannot be read: {getattr(error, 'strerror', None) or error}",
            code="catalog.unreadable",
            hints=("name a TOML file with `--catalog FILE`, or leave it out",),
        ) from error
    try:
        return overlay(base, text, str(path))
    except ValueError as error:
        raise UsageInvalid(
            str(error),
            code="catalog.invalid",
            hints=(
                "correct the row; docs/concepts/cost.md shows a file with every table",
            ),
        ) from error
