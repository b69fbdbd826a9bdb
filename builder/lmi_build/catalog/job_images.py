"""Images for stages that need no device, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from dataclasses import dataclass
from functools import cache

from lmi_build.catalog.tables import read_named_rows

FILE = "job_images.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobImage:
    """
    One image.

    Args:
        name: Of the row.
        repository: Row of `images.toml`.
        tag: Its tag.
        python: Version of its Python.
        versions: Distribution to the version that it pins.
        brings: Further distributions that it has, in a version that it leaves open.
        source: Where it was read.
        checked: When, as `YYYY-MM-DD`.
    """

    name: str
    repository: str
    tag: str
    python: str
    versions: Mapping[str, str]
    brings: tuple[str, ...]
    source: str
    checked: str

    def has(self, distribution: str) -> bool:
        """Whether it is known to have a distribution."""
        return distribution in self.versions or distribution in self.brings


@cache
def job_images() -> Mapping[str, JobImage]:
    """
    Every image by name, in the file's order; the first is the one taken.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return read_named_rows(JobImage, FILE)


def default_image() -> JobImage:
    """The image for stages that need no device."""
    return next(iter(job_images().values()))
