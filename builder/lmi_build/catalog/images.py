"""Where the images that serve are, by region, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from lmi_build.catalog.tables import read_row, read_tables

FILE = "images.toml"
REPOSITORY = "djl-inference"


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
    suffixes: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@cache
def _repository(name: str) -> _Repository:
    """One table of the file, whose regions are all known to it."""
    where = f"{FILE}: [{name}]"
    row = read_row(_Repository, read_tables(FILE)[name], where=where)
    lists = {"suffixes": tuple(row.suffixes), **row.absent}
    for key, names in lists.items():
        unknown = sorted(set(names) - set(row.accounts))
        if unknown:
            raise ValueError(f"{where}, `{key}` has {unknown}, without an account")
    return row


@cache
def registries(repository: str = REPOSITORY) -> Mapping[str, Registry]:
    """
    The registry of every region that has the repository, sorted.

    Args:
        repository: Name of the repository.

    Raises:
        KeyError: No repository has that name.
        ValueError: The data file is wrong; a fault of the package.
    """
    row = _repository(repository)
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


def regions(tag: str = "", *, repository: str = REPOSITORY) -> tuple[str, ...]:
    """
    Every region that has images of a repository, sorted.

    Args:
        tag: As `Release.tag` says; only regions that have images of its kind then.
        repository: Name of the repository; LMI's unless named.

    Raises:
        KeyError: No repository has that name.
    """
    absent = {
        region
        for kind, without in _repository(repository).absent.items()
        if kind in tag
        for region in without
    }
    return tuple(region for region in registries(repository) if region not in absent)


def image_uri(tag: str, region: str, *, repository: str = REPOSITORY) -> str:
    """
    The image to pull.

    Args:
        tag: As `Release.tag` says.
        region: Such as `us-east-1`.
        repository: Name of the repository, as `NeuronRelease.repository` says; LMI's
            unless named.

    Raises:
        KeyError: The region has no images of the repository, or none of the tag's kind;
            its argument is the region. Or no repository has that name.
    """
    if region not in regions(tag, repository=repository):
        raise KeyError(region)
    return f"{registries(repository)[region].host}/{repository}:{tag}"
