"""Where the LMI images are, by region, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from lmi_build.catalog.tables import read_row, read_tables

FILE = "images.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registry:
    """
    The registry of one region.

    Args:
        region: Such as `us-east-1`.
        account: Account that owns the registry.
        suffix: End of its host name, which differs by partition.
    """

    region: str
    account: str
    suffix: str

    @property
    def host(self) -> str:
        """Host name of the registry."""
        return f"{self.account}.dkr.ecr.{self.region}.{self.suffix}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Repository:
    """One repository: its accounts and host name suffixes."""

    source: str
    suffix: str
    accounts: Mapping[str, str]
    suffixes: Mapping[str, str]


@cache
def registries(repository: str = "djl-inference") -> Mapping[str, Registry]:
    """
    The registry of every region that has the repository, sorted.

    Args:
        repository: Name of the repository.

    Raises:
        KeyError: No repository has that name.
        ValueError: The data file is wrong; a fault of the package.
    """
    table = read_tables(FILE)[repository]
    row = read_row(_Repository, table, where=f"{FILE}: [{repository}]")
    unused = sorted(set(row.suffixes) - set(row.accounts))
    if unused:
        raise ValueError(f"{FILE}: [{repository}], `suffixes` has {unused}, not used")
    return MappingProxyType(
        {
            region: Registry(
                region=region,
                account=account,
                suffix=row.suffixes.get(region, row.suffix),
            )
            for region, account in sorted(row.accounts.items())
        }
    )


def regions() -> tuple[str, ...]:
    """Every region that has LMI images, sorted."""
    return tuple(registries())


def image_uri(tag: str, region: str) -> str:
    """
    The image to pull.

    Args:
        tag: As `Release.tag` says.
        region: Such as `us-east-1`.

    Raises:
        KeyError: The region has no LMI images; its argument is the region.
    """
    return f"{registries()[region].host}/djl-inference:{tag}"
