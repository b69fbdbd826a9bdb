"""
Compiled graphs that outlive a build, by the compiler's version and their own hash.

A shared folder is laid out as the compiler's own cache is:

    neuronxcc-2.16.372.0+4a9b2326/MODULE_<20 hex>+<8 hex>/model.neff, model.done, ...

A build never compiles into the shared folder. It gets a folder of its own, filled with
the finished entries of its compiler, and gives its own finished entries back by a
rename, so that several builds may run at once and a killed one leaves nothing half
written. An entry is finished when `model.done` is there and `model.neff` is not empty.

Source: libneuronxla `neuron_cc_cache.py`, as transformers-neuronx 0.13 compiler.py and
optimum-neuron `utils/hub_cache_utils.py` use it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.toolchain import same_version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_COMPILER = "neuronxcc-"
_MODULE = "MODULE_"


def seed_cache(shared: Path, own: Path, compiler: str) -> int:
    """
    Fill a build's own cache with what is finished.

    Args:
        shared: The folder that outlives builds; it need not exist.
        own: The build's folder.
        compiler: Version of the compiler.

    Returns:
        Number of graphs.
    """
    count = 0
    for entry in finished(shared):
        if not same_version(compiler, entry.parent.name[len(_COMPILER) :]):
            continue
        target = own / entry.parent.name / entry.name
        target.mkdir(parents=True, exist_ok=True)
        for path in entry.iterdir():
            _link(path, target / path.name)
        count += 1
    return count


def harvest_cache(own: Path, shared: Path) -> int:
    """
    Give what a build finished to the builds that follow.

    Args:
        own: The build's folder; it need not exist.
        shared: The folder that outlives builds.

    Returns:
        Number of graphs that were not there before.
    """
    count = 0
    for entry in finished(own):
        target = shared / entry.parent.name / entry.name
        if is_finished(target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex}")
        shutil.copytree(entry, half)
        try:
            half.rename(target)
        except OSError:
            # Another build was first; its graph is the same.
            shutil.rmtree(half)
        else:
            count += 1
    return count


def finished(folder: Path) -> Iterator[Path]:
    """Every finished entry of a cache, in order."""
    for compiler in sorted(folder.glob(f"{_COMPILER}*")):
        for entry in sorted(compiler.glob(f"{_MODULE}*")):
            if is_finished(entry):
                yield entry


def is_finished(entry: Path) -> bool:
    """Whether an entry was written to its end."""
    neff = entry / "model.neff"
    return (
        (entry / "model.done").is_file() and neff.is_file() and neff.stat().st_size > 0
    )


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
