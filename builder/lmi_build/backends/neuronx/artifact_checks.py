"""Why an artifact of Transformers NeuronX is not the one that was planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.artifact_folder import NEFF_NAME
from lmi_build.backends.neuronx.front_ends import GRAPHS_DIR
from lmi_build.backends.neuronx.layout import VERSION_NAME, block_of
from lmi_build.backends.neuronx.toolchain import same_version
from lmi_build.errors import Problem
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmi_build.backends.neuronx.artifact_folder import NeuronArtifact, Shard

_SHOWN = 8
_AGAIN = "build it again: the files of one build belong together"


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronExpected:
    """
    What an artifact should be; what is None is not compared.

    Args:
        neuronx_cc: Version of the compiler of the image that loads it.
        num_neffs: Graphs that were to be compiled.
        num_layers: Decoder blocks of the model.
        presharded: The weights are split over the cores.
        release: Name of the release that built it.
        block: What `config.json` should say under `neuron`.
    """

    neuronx_cc: str | None = None
    num_neffs: int | None = None
    num_layers: int | None = None
    presharded: bool | None = None
    release: str | None = None
    block: Mapping[str, Any] | None = None


def artifact_problems(
    artifact: NeuronArtifact, expected: NeuronExpected
) -> tuple[Problem, ...]:
    """Every way in which an artifact differs from what was planned, or is not whole."""
    return (
        *_graph_problems(artifact, expected),
        *_version_problems(artifact, expected),
        *_block_problems(artifact, expected),
        *_root_problems(artifact),
        *_weight_problems(artifact, expected),
        *_shard_problems(artifact, expected),
    )


def _graph_problems(
    artifact: NeuronArtifact, expected: NeuronExpected
) -> Iterator[Problem]:
    found = len(artifact.graphs)
    if expected.num_neffs is not None and found != expected.num_neffs:
        yield Problem(
            code="neuronx.neff-missing",
            message=f"`{GRAPHS_DIR}/` has {found} NEFFs, {expected.num_neffs} graphs"
            " were compiled",
            hint=_AGAIN,
        )
    listed = artifact.record.get("graphs")
    if isinstance(listed, list):
        yield from _listed_problems(set(map(str, listed)), artifact)
    if empty := [name for name, size in artifact.graphs.items() if not size]:
        yield Problem(
            code="neuronx.neff-broken",
            message=f"NEFF {_some(empty)} is empty",
            hint="build it again, or fetch it again from where it came",
        )
    if odd := [name for name in artifact.graphs if not NEFF_NAME.match(name)]:
        yield Problem(
            code="neuronx.neff-broken",
            message=f"{_some(odd)} is no name of a graph: the loader looks for the"
            " first 20 hexadecimal digits of the hash of its HLO",
            hint="do not rename NEFFs; build it again",
        )


def _listed_problems(listed: set[str], artifact: NeuronArtifact) -> Iterator[Problem]:
    """The graphs that the build wrote down, against those that lie there."""
    if missing := sorted(listed - set(artifact.graphs)):
        yield Problem(
            code="neuronx.neff-missing",
            message=f"NEFF {_some(missing)} was built and is not there: the loader"
            " ends with `Could not find a matching NEFF`",
            hint="build it again, or fetch it again from where it came",
        )
    if extra := sorted(set(artifact.graphs) - listed):
        yield Problem(
            code="neuronx.neff-extra",
            message=f"NEFF {_some(extra)} is of another build",
            hint="remove it: nothing asks for it, and every start downloads it",
        )


def _version_problems(
    artifact: NeuronArtifact, expected: NeuronExpected
) -> Iterator[Problem]:
    wanted = expected.neuronx_cc
    if not artifact.version:
        yield Problem(
            code="neuronx.version-differs",
            message=f"there is no `{GRAPHS_DIR}/{VERSION_NAME}`, so nothing says which"
            " compiler made the graphs",
            hint=_AGAIN,
        )
    elif wanted is not None and not same_version(wanted, artifact.version):
        yield Problem(
            code="neuronx.version-differs",
            message=f"the graphs are of neuronx-cc {artifact.version}, the image that"
            f" loads them has {wanted}",
            path="compile.release",
            hint=f"build it with {wanted}, or serve it with an image that has"
            f" {artifact.version}",
        )
    recorded = str(artifact.record.get("compiler_version", ""))
    if recorded and artifact.version and not same_version(recorded, artifact.version):
        yield Problem(
            code="neuronx.version-differs",
            message=f"{VERSION_NAME} says neuronx-cc {artifact.version}, the record of"
            f" the build {recorded}",
            hint=_AGAIN,
        )
    built = artifact.record.get("release")
    if expected.release is not None and built not in {None, expected.release}:
        yield Problem(
            code="neuronx.version-differs",
            message=f"it was built for `{built}`, `{expected.release}` was planned",
            path="compile.release",
            hint=_AGAIN,
        )


def _block_problems(
    artifact: NeuronArtifact, expected: NeuronExpected
) -> Iterator[Problem]:
    block = block_of(artifact.config)
    if not block:
        yield Problem(
            code="neuronx.block-differs",
            message="config.json has no `neuron` block: the loader takes the folder for"
            " a model and compiles it at every start",
            hint=_AGAIN,
        )
        return
    for name, wanted in (expected.block or {}).items():
        found = block.get(name)
        if name == "compiler_version":
            same = found is not None and same_version(str(wanted), str(found))
        else:
            same = found == wanted
        if not same:
            yield Problem(
                code="neuronx.block-differs",
                message=f"config.json says `neuron.{name}` {found}, {wanted} was"
                " planned",
                hint=_AGAIN,
            )


def _root_problems(artifact: NeuronArtifact) -> Iterator[Problem]:
    if artifact.root_weights:
        yield Problem(
            code="neuronx.root-weights",
            message=f"{_some(artifact.root_weights)} lies at the root, so the loader"
            f" ignores `{GRAPHS_DIR}/` and compiles at every start",
            hint="remove it: the weights lie beside the graphs or in `checkpoint/`",
        )


def _weight_problems(
    artifact: NeuronArtifact, expected: NeuronExpected
) -> Iterator[Problem]:
    """Files of split weights: those of the head and of each block."""
    if not expected.presharded:
        return
    if not artifact.marked:
        yield Problem(
            code="neuronx.weights-missing",
            message=f"`{GRAPHS_DIR}/config.json` does not say that the weights are"
            " split over the cores, so the loader looks for whole ones",
            hint=_AGAIN,
        )
    missing = [] if artifact.head else ["the head"]
    wanted = set(range(expected.num_layers or 0))
    lost = sorted(wanted - set(artifact.layers))
    missing += [f"block {layer}" for layer in lost]
    if missing:
        yield Problem(
            code="neuronx.weights-missing",
            message=f"weights are missing of {_plainly(missing)}, of"
            f" {expected.num_layers} blocks",
            hint="build it again, or fetch it again from where it came",
        )
    extra = sorted(set(artifact.layers) - wanted)
    if expected.num_layers is not None and extra:
        yield Problem(
            code="neuronx.weights-differ",
            message=f"there are weights of block {_plainly(list(map(str, extra)))},"
            f" the model has {expected.num_layers} blocks",
            hint=_AGAIN,
        )


def _shard_problems(
    artifact: NeuronArtifact, expected: NeuronExpected
) -> Iterator[Problem]:
    """Every core's part of every tensor, of one shape."""
    if artifact.broken:
        yield Problem(
            code="neuronx.weights-differ",
            message=f"{_plainly(list(artifact.broken))} is no tensor's part",
            hint=_AGAIN,
        )
    cores = (expected.block or block_of(artifact.config)).get("num_cores")
    if not isinstance(cores, int):
        return
    for (path, tensor), parts in artifact.shards.items():
        if _absent(parts):
            continue
        if missing := sorted(set(range(cores)) - set(parts)):
            yield Problem(
                code="neuronx.weights-missing",
                message=f"{path}: `{tensor}` has {len(parts)} parts, {cores} cores need"
                f" one each; missing: {_plainly(list(map(str, missing)))}",
                hint=f"build it for {cores} cores, or serve it on {len(parts)}",
            )
        elif len(parts) > cores:
            yield Problem(
                code="neuronx.weights-differ",
                message=f"{path}: `{tensor}` has {len(parts)} parts for {cores} cores",
                hint=_AGAIN,
            )
        kinds = {(part.dtype, part.shape) for part in parts.values()}
        if len(kinds) > 1:
            shapes = [f"{dtype} {list(shape)}" for dtype, shape in sorted(kinds)]
            yield Problem(
                code="neuronx.weights-differ",
                message=f"{path}: the parts of `{tensor}` are not alike:"
                f" {join_words(shapes, last='and')}",
                hint=_AGAIN,
            )


def _absent(parts: Mapping[int, Shard]) -> bool:
    """A tensor that the model does not have is kept as one part of nothing."""
    return all(part.empty for part in parts.values())


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown + _rest(names)


def _plainly(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + _rest(names)


def _rest(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return f" and {more} more" if more > 0 else ""
