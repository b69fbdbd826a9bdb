"""Calls of optimum-neuron and NxD Inference, and what serves what they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.neuronx.nxdi import nxdi_findings, nxdi_problems
from lmi_build.backends.neuronx.nxdi_serving import nxdi_properties
from lmi_build.backends.neuronx.optimum import (
    generation,
    optimum_findings,
    optimum_problems,
)
from lmi_build.backends.neuronx.optimum_serving import (
    optimum_environment,
    optimum_properties,
)
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.package.properties import render_properties
from lmi_build.values.bounds import Bounds
from neuron_exports import lowered, request

if TYPE_CHECKING:
    from lmi_build.backends.neuronx.nxd_request import NxdRequest

HERE = Path(__file__).parent / "neuronx-nxd-calls"
PAIRS = [
    (loader, name)
    for name, row in neuron_releases().items()
    for loader in ("optimum", "nxdi")
    if loader in row.loaders
]
ONE = Bounds(max_input_len=1000, max_output_len=100, max_batch_size=1)
CASES: dict[str, dict[str, Any]] = {
    "float": {},
    "int8": {"method": "int8"},
    "awq": {"method": "awq"},
    "one request of an odd length": {"bounds": ONE, "tensor_parallel_size": 8},
}


def served(asked: NxdRequest, loader: str) -> str:
    """The properties or variables of a container."""
    if loader == "nxdi":
        return render_properties(nxdi_properties(asked)).decode()
    if generation(asked.release) == "tnx":
        return render_properties(optimum_properties(asked)).decode()
    variables = optimum_environment(asked)
    return "".join(f"{name}={value}\n" for name, value in sorted(variables.items()))


def pair_text(loader: str, release: str) -> str:
    """Calls, findings and settings of one release, for each case."""
    parts = []
    for title, changes in CASES.items():
        parts.append(f"== {title}")
        asked = request(release, **changes)
        nxdi = loader == "nxdi"
        found = nxdi_problems(asked) if nxdi else optimum_problems(asked)
        refused = [f"refused: {p.code}: {p.message}\nhint: {p.hint}" for p in found]
        if refused:
            parts += refused
            continue
        call = lowered(asked, loader).to_json()
        parts.append(json.dumps(call, indent=2, sort_keys=True))
        told = nxdi_findings(asked) if nxdi else optimum_findings(asked)
        parts += [f"note: {text}" for text in told]
        parts.append(served(asked, loader).rstrip())
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize(("loader", "release"), PAIRS)
def test_calls(loader: str, release: str, *, update_golden: bool) -> None:
    """Every release with each loader, with and without rounding."""
    path = HERE / f"{loader}-{release}.txt"
    text = pair_text(loader, release)
    if update_golden:
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8") == text
