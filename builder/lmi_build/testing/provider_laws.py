"""Laws of the provider object itself: light, whole, and able to look at a machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lmi_build.spi import Backend, Finding
from lmi_build.testing.law import Law, require
from lmi_build.testing.law_cases import cases_of
from lmi_build.testing.samples import host

if TYPE_CHECKING:
    from lmi_build.spi import Host

# What no planner may load: frameworks, runtimes, and what they are built on.
HEAVY = (
    "jax",
    "libneuronxla",
    "neuronxcc",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime_genai",
    "openvino",
    "safetensors",
    "tensorrt",
    "tensorrt_llm",
    "tokenizers",
    "torch",
    "torch_neuronx",
    "transformers",
    "transformers_neuronx",
    "vllm",
)
_IMPORT = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def _light(backend: Backend) -> None:
    module = type(backend).__module__
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, module],
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    require(done.returncode == 0, f"`{module}` cannot be imported: {done.stderr}")
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    own = {name.replace("-", "_") for name in backend.info.modules}
    heavy = sorted(loaded & {*HEAVY, *own})
    require(not heavy, f"importing `{module}` imports {', '.join(heavy)}")


def _whole(backend: Backend) -> None:
    require(isinstance(backend, Backend), f"{backend!r} is no `Backend`")
    info = backend.info
    require(info.name and info.summary, "the provider has no name or no summary")
    require(info.targets, "the provider says no target")
    require(info.salt >= 1, f"its salt is {info.salt}")
    entries = {info.entry, *info.further_entries}
    for case in cases_of(backend):
        arguments = (case.recipe, case.facts, case.scheme, host())
        used = {step.entry for step in backend.stages(*arguments)}
        used |= {backend.proof(*arguments).entry} - {""}
        require(
            used <= entries, f"stages enter {sorted(used - entries)}, which it hides"
        )
    for entry in sorted(entries):
        module, _, name = entry.partition(":")
        require(
            name and find_spec(module) is not None, f"its entry {entry!r} is not there"
        )


def _hosts() -> tuple[Host, ...]:
    """Nothing here, everything here, and programs that talk nonsense."""
    return (
        host(versions=None),
        host(),
        host(output="no such\tthing, {[", status=0),
        host(output="killed", status=137),
    )


def _looks(backend: Backend) -> None:
    for machine in _hosts():
        rows = list(backend.diagnose(machine))
        names = [row.name for row in rows]
        require(
            all(isinstance(row, Finding) for row in rows),
            f"no findings: {rows!r}",
        )
        require(len(set(names)) == len(names), f"it finds twice: {names}")
        for row in rows:
            require(row.evidence, f"`{row.name}` says nothing of what was seen")
            require(
                row.works or row.fix,
                f"`{row.name}` does not work, and there is no way out",
            )


PROVIDER_LAWS: tuple[Law[Backend], ...] = (
    Law(
        name="provider-is-whole",
        says="It has a name, targets and a salt, and all its entries are there.",
        hold=_whole,
    ),
    Law(
        name="provider-is-light",
        says="Importing it in a fresh interpreter imports no framework and no runtime.",
        hold=_light,
    ),
    Law(
        name="diagnose-finds",
        says="`diagnose` gives findings with evidence and a way out, on any machine.",
        hold=_looks,
    ),
)
