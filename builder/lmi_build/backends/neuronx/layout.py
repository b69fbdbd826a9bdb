"""Which file of a Transformers NeuronX artifact lies where, for each release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.front_ends import GRAPHS_DIR, neuron_front_ends
from lmi_build.backends.neuronx.loader_call import NEURON_BLOCK
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.catalog.neuron_releases import NeuronRelease

HEAD_FILE = "DecoderLMHead.safetensors"
LAYER_FILE = "decoder_layer_{}.safetensors"
VERSION_NAME = "VERSION"
RECORD_NAME = "neuron.json"
CONFIG_NAME = "config.json"
_GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronLayout:
    """
    Where the parts of an artifact lie, as folders relative to it; `.` is its root.

    Args:
        engine_dir: What the compile stage left: the root itself.
        tokenizer_dir: The tokenizer's files.
        model_files: Further files of the model beside the tokenizer, by name. The
            model's own `config.json` is not among them: the compile stage writes it,
            with a `neuron` block, by which the loader knows a compiled folder.
        graphs_dir: The NEFFs and the compiler's version.
        weights_dir: The weights: split over the cores beside the graphs, or the
            model's own in a folder of theirs.
        presharded: The weights are split over the cores.
        files: What must lie there by name after a build, sorted.
    """

    engine_dir: str
    tokenizer_dir: str
    model_files: tuple[str, ...]
    graphs_dir: str
    weights_dir: str
    presharded: bool
    files: tuple[str, ...]


def artifact_layout(release: NeuronRelease, *, num_layers: int) -> NeuronLayout:
    """
    The layout that one release loads without compiling.

    No safetensors ever lie at the root: from 0.28 on they make the loader ignore
    `compiled/` and compile the model again.

    Args:
        release: Row of the catalogue, a release of LMI with Transformers NeuronX.
        num_layers: Decoder blocks of the model.

    Raises:
        KeyError: No such front end is known.

    Example:
        `artifact_layout(neuron_releases()["djl-neuronx-0.30.0"], num_layers=32).files`
        names the record, both configurations, the version and 33 files of weights.
    """
    front = neuron_front_ends()[release.version]
    presharded = front.layout == "presharded"
    at = front.weights_dir
    weights: tuple[str, ...] = ()
    if presharded:
        layers = (LAYER_FILE.format(layer) for layer in range(num_layers))
        weights = tuple(f"{at}/{name}" for name in (HEAD_FILE, *layers))
    files = {
        RECORD_NAME,
        CONFIG_NAME,
        f"{GRAPHS_DIR}/{VERSION_NAME}",
        f"{at}/{CONFIG_NAME}",
        *weights,
    }
    return NeuronLayout(
        engine_dir=".",
        tokenizer_dir=".",
        model_files=(_GENERATION_CONFIG,),
        graphs_dir=GRAPHS_DIR,
        weights_dir=at,
        presharded=presharded,
        files=tuple(sorted(files)),
    )


def layout_problems(release: NeuronRelease) -> Iterator[Problem]:
    """Every reason why no image loads a Transformers NeuronX artifact of a release."""
    if release.version not in neuron_front_ends() or "tnx" not in release.loaders:
        yield Problem(
            code="neuronx.no-front-end",
            message=f"no handler of `{release.name}` loads graphs of Transformers"
            " NeuronX",
            path="compile.release",
            hint="use `release: djl-neuronx-0.30.0`",
            unsupported=True,
        )


def neuron_block(
    release: NeuronRelease, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """
    What `config.json` says under `neuron`: how the graphs were compiled.

    The loader asks only whether there is one; this is what LMI's own partition writes.

    Args:
        release: Whose compiler makes the graphs.
        arguments: Those of the call that compiles.
    """
    positions = arguments.get("n_positions")
    largest = max(positions) if isinstance(positions, list | tuple) else positions
    return {
        "auto_cast_type": arguments["amp"],
        "batch_size": arguments["batch_size"],
        "checkpoint_id": None,
        "checkpoint_revision": None,
        "compiler_type": "neuronx-cc",
        "compiler_version": release.neuronx_cc,
        "num_cores": arguments["tp_degree"],
        "sequence_length": largest,
    }


def block_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `neuron` block of a configuration; empty where there is none."""
    found = config.get(NEURON_BLOCK)
    return found if isinstance(found, dict) else {}
