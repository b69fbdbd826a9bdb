"""
The verify stage of NeuronX decoders, on a machine without Neuron cores.

Order: every hash; then the graphs, the compiler's version and every core's weights
against the plan; then the call that the release's loader will make from the shipped
files against the one that was compiled; then what each Neuron image does with the
folder when it starts; then, for int8, the quality of the weights: the library's own
rounding is computed block by block beside the float model, and the gates judge that.
Nothing here runs a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lmi_build.backends.folder import local_folder
from lmi_build.backends.java_properties import java_properties
from lmi_build.backends.neuronx.artifact_checks import NeuronExpected, artifact_problems
from lmi_build.backends.neuronx.artifact_folder import read_neuron_artifact
from lmi_build.backends.neuronx.call_differences import call_differences
from lmi_build.backends.neuronx.front_ends import neuron_front_ends
from lmi_build.backends.neuronx.layout import neuron_block
from lmi_build.backends.neuronx.loader_call import loader_call
from lmi_build.backends.neuronx.property_reader import RefusedError
from lmi_build.backends.neuronx.startup import (
    PROPERTIES_NAME,
    neuron_startup,
    neuron_startup_everywhere,
)
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.checkpoint.formats.rounded import S8Reader
from lmi_build.checkpoint.header import read_header
from lmi_build.errors import Problem
from lmi_build.verify.integrity import refuse_if_damaged
from lmi_build.verify.proofs import (
    REHEARSED,
    finish,
    measure_rounding,
    note,
    refuse,
    refuse_unless_loads,
    report_head,
    startup_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.neuronx.artifact_folder import NeuronArtifact
    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.checkpoint.header import Header
    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.numerics.compare import Drift
    from lmi_build.spi import Job
    from lmi_build.values.manifest import Manifest

ENTRY = f"{__name__}:run"


def run(job: Job, emit: Emit) -> None:
    """
    Write `job.out/verify.json`.

    Inputs: `package`, the artifact, and `model`, the float model. Parameters beside the
    recipe's `verify` section: `release` (name in the catalogue), `rehearsal` (bool),
    `call` (the `NeuronCall` that was compiled, as JSON), `num_layers` (decoder blocks)
    and `int8` (the library rounds the weights when it loads them).

    Raises:
        VerifyFailed: The artifact is not what was planned, or the container would
            compile it when it starts.
        GateFailed: `verify.gate-missed`; the message holds every number.
    """
    params = cast("dict[str, Any]", job.params)
    root = job.inputs["package"]
    manifest = refuse_if_damaged(root)
    release = neuron_releases()[params["release"]]
    report = report_head(manifest, kind="tnx", rehearsal=params["rehearsal"])
    if params["rehearsal"]:
        note(job, emit, "warning", "verify.rehearsal", REHEARSED)
    else:
        folder = local_folder(root)
        report["engine"] = _graphs(job, root, folder, release)
        report["bounds"] = _bounds(manifest, params["call"])
        report["startup"] = _startup(job, emit, folder, release)
    finish(job, emit, manifest, report, _quality(job, emit, manifest))


def _graphs(
    job: Job, root: Path, folder: Folder, release: NeuronRelease
) -> dict[str, JSONValue]:
    """Graphs and weights against the plan, and the loader's call against ours."""
    params = cast("dict[str, Any]", job.params)
    call = params["call"]

    def header(path: str) -> Header:
        return read_header(root / path)

    artifact = read_neuron_artifact(folder, header=header)
    front = neuron_front_ends()[release.version]
    expected = NeuronExpected(
        neuronx_cc=release.neuronx_cc,
        num_neffs=call["num_neffs"],
        num_layers=params["num_layers"],
        presharded=front.layout == "presharded",
        release=release.name,
        block=neuron_block(release, call["arguments"]),
    )
    refuse(artifact_problems(artifact, expected))
    refuse(tuple(_call_problems(folder, artifact, release, call)))
    return {
        "compiler": artifact.version,
        "graphs": sorted(artifact.graphs),
        "num_cores": call["arguments"]["tp_degree"],
        "num_shards": len(artifact.shards),
    }


def _call_problems(
    folder: Folder,
    artifact: NeuronArtifact,
    release: NeuronRelease,
    call: Mapping[str, Any],
) -> Iterator[Problem]:
    """What the release's loader makes of the shipped files, against what was built."""
    front = neuron_front_ends()[release.version]
    entries = java_properties(folder.read(PROPERTIES_NAME))
    try:
        made = loader_call(front, entries, artifact.config, paths=tuple(folder.sizes))
    except RefusedError as refused:
        yield Problem(
            code="neuronx.call-unserved",
            message=f"LMI {release.version} would not make the compiled call:"
            f" {refused.reason}",
            hint=refused.fix,
        )
        return
    row = release.tnx_row
    for found in call_differences(call["arguments"], made.arguments, tnx_row=row):
        yield Problem(
            code="neuronx.option-unserved",
            message=f"the loader will pass `{found.option}` {found.loaded}, compiled is"
            f" {found.compiled}: no graph of that hash is there",
            hint="build it again: the properties are not those of these graphs",
        )


def _bounds(manifest: Manifest, call: Mapping[str, Any]) -> dict[str, JSONValue]:
    """
    What the artifact promises, against the lengths and the batch that were compiled.

    Raises:
        VerifyFailed: `neuronx.bounds-differ`.
    """
    arguments = call["arguments"]
    positions = arguments.get("n_positions")
    context = arguments.get("context_length_estimate")
    compiled = {
        "max_seq_len": _largest(positions),
        "max_input_len": _largest(context),
        "max_batch_size": _largest(arguments["batch_size"]),
    }
    bounds = manifest.bounds
    lengths = (bounds.get("max_input_len"), bounds.get("max_output_len"))
    total = sum(length for length in lengths if isinstance(length, int))
    promised = {
        "max_seq_len": total or None,
        "max_input_len": bounds.get("max_input_len"),
        "max_batch_size": bounds.get("max_batch_size"),
    }
    refuse(
        tuple(
            Problem(
                code="neuronx.bounds-differ",
                message=f"`{name}` {promised[name]} is promised, the graphs were"
                f" compiled for {found}",
                path=f"bounds.{name}",
                hint=f"compile for {promised[name]}, or promise {found}",
            )
            for name, found in compiled.items()
            if found is not None
            and isinstance(promised[name], int)
            and cast("int", promised[name]) > found
        )
    )
    return {name: found for name, found in compiled.items() if found is not None}


def _largest(value: Any) -> int | None:
    found = max(value) if isinstance(value, list | tuple) else value
    return found if isinstance(found, int) and found > 0 else None


def _startup(
    job: Job, emit: Emit, folder: Folder, release: NeuronRelease
) -> list[JSONValue]:
    """What each Neuron image does with the folder; ours must load it."""
    own = neuron_startup(folder, release.version)
    refuse_unless_loads(job, emit, own, f"LMI {release.version}")
    return startup_rows(neuron_startup_everywhere(folder))


def _quality(job: Job, emit: Emit, manifest: Manifest) -> Drift | None:
    """What the library's rounding to int8 costs; None where it rounds nothing."""
    params = cast("dict[str, Any]", job.params)
    if not params["int8"]:
        return None
    amp = str(params["call"]["arguments"]["amp"])
    return measure_rounding(
        job, emit, manifest, lambda: S8Reader(job.inputs["model"], amp=amp)
    )
