"""What a loader runs into once it has taken a folder for compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.artifact_folder import read_neuron_artifact
from lmi_build.backends.neuronx.front_ends import GRAPHS_DIR
from lmi_build.backends.neuronx.layout import CONFIG_NAME, VERSION_NAME, block_of
from lmi_build.backends.neuronx.loader_call import NEURON_BLOCK
from lmi_build.backends.neuronx.signatures import signatures
from lmi_build.backends.neuronx.toolchain import same_version
from lmi_build.backends.verdicts import Verdict, fails, loads
from lmi_build.errors import VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.neuronx.artifact_folder import NeuronArtifact
    from lmi_build.backends.neuronx.front_ends import NeuronFrontEnd
    from lmi_build.backends.neuronx.loader_call import LoaderCall
    from lmi_build.catalog.neuron_releases import NeuronRelease

# Where SageMaker puts the model's files, which nothing there can write to.
MOUNT = "/opt/ml/model"
BUILD = "build the artifact for this release"
_CACHE = "NEURON_COMPILE_CACHE_URL"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_GENERATION = "generation_config.json"
# What the block in `config.json` calls an argument of the call.
_BLOCK_NAMES = {
    "num_cores": "tp_degree",
    "batch_size": "batch_size",
    "sequence_length": "n_positions",
    "auto_cast_type": "amp",
}
# The record's copy of what `NeuronConfig` was given.
_CONFIG = "neuron_config"
# What the library itself changes where it does not suit the sizes.
_FALLS_BACK = frozenset(
    {"group_query_attention", "shard_over_sequence", "fused_rmsnorm_qkv"}
)
# What is made for `NeuronConfig`, by the property that asks for it.
_MADE = {"continuous_batching": "rolling_batch_strategy", "quant": "quantize"}
_KEYS = {
    "tp_degree": "tensor_parallel_degree",
    "batch_size": "max_rolling_batch_size",
    "n_positions": "n_positions",
    "amp": "dtype",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """
    One folder before one release.

    Args:
        folder: What lies at `MOUNT`.
        front: The release's front end.
        release: Row of the catalogue.
        properties: Entries of `serving.properties` and of the environment.
        environment: Variables of the container.
        lmi: Version of LMI.
    """

    folder: Folder
    front: NeuronFrontEnd
    release: NeuronRelease
    properties: Mapping[str, str]
    environment: Mapping[str, str]
    lmi: str


def verdict_on_graphs(
    case: Case, config: Mapping[str, Any], call: LoaderCall
) -> Verdict:
    """
    Whether the loader finds its graphs and weights.

    Args:
        case: The folder, which counts as compiled.
        config: `config.json` at its root.
        call: What the loader calls.
    """
    try:
        artifact = read_neuron_artifact(case.folder)
    except VerifyFailed as error:
        return fails(error.message, BUILD, lmi=case.lmi)
    refused = (
        _no_graphs(case, artifact)
        or _no_weights(case, artifact, config, call)
        or _other_compiler(case, artifact)
        or _other_numbers(case, config, call)
        or _other_options(case, artifact, call)
        or _no_tokenizer(case)
    )
    return refused or loads(
        f"{CONFIG_NAME} has a `{NEURON_BLOCK}` block, and `{GRAPHS_DIR}/` holds"
        f" {len(artifact.graphs)} graphs",
        lmi=case.lmi,
        notes=_notes(case, artifact),
    )


def _no_graphs(case: Case, artifact: NeuronArtifact) -> Verdict | None:
    if artifact.graphs:
        return None
    return fails(
        f"there are no NEFFs in `{GRAPHS_DIR}/`: the loader ends with `Could not find"
        " a matching NEFF`",
        BUILD,
        lmi=case.lmi,
    )


def _no_weights(
    case: Case, artifact: NeuronArtifact, config: Mapping[str, Any], call: LoaderCall
) -> Verdict | None:
    """Weights that are missing, or laid out for another release."""
    if call.folder == ".":
        # It came here by the weights at the root.
        return None
    at = case.front.weights_dir
    here = [name for name in artifact.weights if name.startswith(f"{at}/")]
    split = case.front.layout == "presharded"
    if split and not here:
        other = "checkpoint/" if case.folder.inside("checkpoint").sizes else ""
        told = f"; those in `{other}` are for an older release" if other else ""
        return fails(f"there are no weights in `{at}/`{told}", BUILD, lmi=case.lmi)
    if split and not artifact.marked:
        return fails(
            f"`{at}/config.json` does not say that the weights are split over the"
            " cores, so whole ones are looked for",
            BUILD,
            lmi=case.lmi,
        )
    blocks = config.get("num_hidden_layers", config.get("n_layer"))
    wanted = set(range(blocks)) if isinstance(blocks, int) else set()
    lost = sorted(wanted - set(artifact.layers)) if split else []
    if split and (lost or not artifact.head):
        first = f"of block {lost[0]}" if lost else "of the head"
        return fails(f"weights {first} are missing in `{at}/`", BUILD, lmi=case.lmi)
    torch = [p for p in case.folder.sizes if p.startswith(f"{at}/pytorch_model.bin")]
    if not split and not here and not torch:
        return fails(f"there are no weights in `{at}/`", BUILD, lmi=case.lmi)
    if case.front.one_weights_file and here and not torch:
        only = f"{at}/model.safetensors"
        if only not in here:
            return fails(
                f"this release reads one file, `{only}`, or a folder"
                f" `{at}/pytorch_model.bin`",
                BUILD,
                lmi=case.lmi,
            )
    if not case.folder.has(f"{at}/{CONFIG_NAME}"):
        return fails(f"there is no {CONFIG_NAME} in `{at}/`", BUILD, lmi=case.lmi)
    return None


def _other_compiler(case: Case, artifact: NeuronArtifact) -> Verdict | None:
    """
    Graphs of another release's compiler and library.

    LMI writes the compiler's version and never reads it. Another Transformers NeuronX
    gives its graphs other names, and an older runtime refuses newer NEFFs.
    """
    wanted = case.release.neuronx_cc
    if not artifact.version or same_version(wanted, artifact.version):
        return None
    return fails(
        f"the graphs are of neuronx-cc {artifact.version}; this image has {wanted} with"
        f" Transformers NeuronX {case.release.transformers_neuronx}, which looks for"
        " graphs of its own",
        f"build it for this release, or deploy it with an image of {artifact.version}",
        lmi=case.lmi,
    )


def _other_numbers(
    case: Case, config: Mapping[str, Any], call: LoaderCall
) -> Verdict | None:
    """Properties that are not those of the compiled graphs."""
    block = block_of(config)
    for name, argument in _BLOCK_NAMES.items():
        compiled, asked = block.get(name), call.arguments[argument]
        if isinstance(asked, list):
            asked = max(asked)
        if compiled is None or compiled == asked:
            continue
        return fails(
            f"`option.{_KEYS[argument]}` comes to {asked}, the graphs were compiled for"
            f" {compiled}: no graph of that hash is there",
            f"make `option.{_KEYS[argument]}` that of the build, {compiled}",
            lmi=case.lmi,
        )
    return None


def _other_options(
    case: Case, artifact: NeuronArtifact, call: LoaderCall
) -> Verdict | None:
    """
    Options of `NeuronConfig` and lengths of prompts, against the build's own record.

    What the library falls back from is not compared: the record has what came of it.
    """
    recorded = _recorded(artifact, _CONFIG)
    options = call.arguments["neuron_config"].arguments
    for name in (*case.front.neuron_config, *_MADE):
        if name in _FALLS_BACK or name not in recorded:
            continue
        compiled, asked = recorded[name], options.get(name)
        if name in _MADE:
            compiled, asked = bool(compiled), asked is not None
        elif asked is None:
            row = signatures()[case.release.tnx_row].configs["NeuronConfig"]
            asked = row[name].default if name in row else None
        if compiled != asked:
            return fails(
                f"the loader passes `{name}` {asked}, the graphs were compiled with"
                f" {compiled}: no graph of that hash is there",
                f"make `option.{_MADE.get(name, name)}` that of the build",
                lmi=case.lmi,
            )
    lengths = call.arguments.get("context_length_estimate")
    compiled = _recorded(artifact, "effective").get("context_buckets")
    if lengths is None or compiled is None or sorted(lengths) == compiled:
        return None
    return fails(
        f"the loader passes context lengths {sorted(lengths)}, the graphs were compiled"
        f" for {compiled}",
        "make `option.context_length_estimate` that of the build,"
        f" {','.join(map(str, compiled))}",
        lmi=case.lmi,
    )


def _recorded(artifact: NeuronArtifact, name: str) -> Mapping[str, Any]:
    found = artifact.record.get(name)
    return found if isinstance(found, dict) else {}


def _no_tokenizer(case: Case) -> Verdict | None:
    if any(case.folder.has(name) for name in _TOKENIZER_FILES):
        return None
    return fails(
        "there is no tokenizer at the root, which the handler loads",
        "put tokenizer.json and tokenizer_config.json at the root",
        lmi=case.lmi,
    )


def _notes(case: Case, artifact: NeuronArtifact) -> tuple[str, ...]:
    """What depends on the machine, or cannot be known from the files."""
    notes = []
    if not artifact.version:
        notes.append(
            f"unknown: which compiler made the graphs; there is no"
            f" `{GRAPHS_DIR}/{VERSION_NAME}`"
        )
    if not _recorded(artifact, _CONFIG):
        notes.append(
            "unknown: the options and context lengths that were compiled; length,"
            " batch, type and cores alone were compared"
        )
    if "engine" not in case.properties:
        notes.append(
            "`engine` is not set, and the server infers it: write `engine=Python`"
        )
    if "option.entryPoint" not in case.properties:
        notes.append(
            "`option.entryPoint` is not set: the handler is taken only where the server"
            " finds Neuron devices"
        )
    cache = case.properties.get("option.compiled_graph_path")
    cache = cache or case.environment.get(_CACHE, "")
    if cache.startswith(MOUNT):
        what = (
            "is copied to `/var/tmp/neuron-compile-cache` by the first worker, and"
            " a second one ends because that exists"
            if case.front.moves_cache
            else "cannot be written to"
        )
        notes.append(f"the compile cache at {cache} {what}")
    if not case.folder.has(_GENERATION):
        notes.append(
            f"there is no {_GENERATION}: answers are sampled as config.json"
            " or the library says"
        )
    return tuple(notes)
