"""How each LMI release decides whether a model folder is compiled, read from data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm import PACKAGE
from lmi_build.catalog.tables import read_row, read_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "front_ends.toml"
# What an unreleased source tree is called, and the release whose front end it has.
_ALIASES = {"master": "0.36.0"}
LAYOUTS = ("triton", "engine")
CONFIG_DECIDES = ("always", "without engine", "never")
T5_PATHS = ("", "folders", "compiles")


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontEnd:
    """
    One release's front end and handler, as far as they decide about a folder.

    Args:
        lmi: Version of LMI.
        layout: What it takes for compiled: `triton`, a model repository for Triton in
            a folder below the root, or `engine`, an engine of the LLM API at the root.
        engine: What `engine` is set to for that layout.
        entry_point: Its handler of TensorRT-LLM.
        config_decides: When a configuration at the root that names no text-generating
            architecture turns batching of this handler off: one of `CONFIG_DECIDES`.
        configs: Files at the root that it takes for such a configuration, in order.
        sets_mpi: It turns MPI on by itself where this handler needs it.
        checks_mpi: The handler refuses to run without MPI.
        pipeline_parallel: It counts pipeline ranks when it hands out GPUs.
        t5: What it does with a T5 configuration at the root: nothing of its own, looks
            for encoder and decoder `folders`, or always `compiles`.
        defect: Why nothing is ever served; empty where it works.
    """

    lmi: str
    layout: str
    entry_point: str
    config_decides: str
    configs: tuple[str, ...]
    engine: str = "Python"
    sets_mpi: bool = False
    checks_mpi: bool = False
    pipeline_parallel: bool = False
    t5: str = ""
    defect: str = ""


@cache
def front_ends() -> Mapping[str, FrontEnd]:
    """
    Every known front end by version of LMI, newest first.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    found = {}
    for lmi, table in read_tables(FILE, package=PACKAGE).items():
        row = read_row(FrontEnd, {"lmi": lmi, **table}, where=f"{FILE}: [{lmi}]")
        known = (
            (row.layout, LAYOUTS),
            (row.config_decides, CONFIG_DECIDES),
            (row.t5, T5_PATHS),
        )
        for value, allowed in known:
            if value not in allowed:
                raise ValueError(f"{FILE}: [{lmi}] has {value!r}; known: {allowed}")
        found[lmi] = row
    return MappingProxyType(found)


def front_end(lmi: str) -> FrontEnd:
    """
    The front end of one release.

    Args:
        lmi: Version of LMI such as `0.33.0`, or `master`.

    Raises:
        KeyError: That version is not known.
    """
    return front_ends()[_ALIASES.get(lmi, lmi)]
