"""
What serves an export of optimum-neuron, and what it does with the folder at start.

LMI loads exports over transformers-neuronx by `serving.properties`; the container of
vLLM loads those over NeuronX Distributed by variables that begin with `SM_ON_`, which
its entry point turns into words of `optimum-cli neuron serve`.

Source: djl-serving 0.27.0-dlc to 0.34.0-dlc, `OptimumModelLoader` in
neuron_utils/model_loader.py and properties_manager/tnx_properties.py; optimum-neuron
v0.0.20 to v0.0.27, neuron/modeling_decoder.py; v0.4.2 to v0.4.5,
docker/vllm/Dockerfile, commands/neuron/serve.py, neuron/configuration_utils.py and
neuron/models/inference/backend/pretrained_model.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.front_ends import ENTRY_POINT, neuron_front_ends
from lmi_build.backends.neuronx.nxd_folder import json_object
from lmi_build.backends.neuronx.nxd_request import LMI_DTYPES, PLATFORMS
from lmi_build.backends.neuronx.nxd_signatures import version_key
from lmi_build.backends.neuronx.optimum_nxd import nxd_files
from lmi_build.backends.verdicts import Verdict, compiles, elsewhere, fails, loads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.neuronx.nxd_request import NxdRequest
    from lmi_build.catalog.neuron_releases import NeuronRelease

MOUNT = "/opt/ml/model"
PREFIX = "SM_ON_"
CONTINUOUS_MODELS = ("llama", "mistral")
# OPTIMUM_CAUSALLM_MODEL_TYPES of LMI's handler, 0.27 to 0.34.
LMI_MODELS = ("bloom", "gpt2", "llama", "mistral", "opt")
# LMI asks before the loader is made from here on.
_GATED_SINCE = (0, 28)
_STRATEGIES = ("naive_rolling_batch", "continuous_batching")
_CHECKED = (
    ("max_rolling_batch_size", "batch_size"),
    ("tensor_parallel_degree", "num_cores"),
    ("n_positions", "sequence_length"),
)
_SERVED = (
    ("BATCH_SIZE", "batch_size"),
    ("SEQUENCE_LENGTH", "sequence_length"),
    ("TENSOR_PARALLEL_SIZE", "tp_degree"),
)
_AGAIN = "build the artifact again for this release"


def optimum_properties(request: NxdRequest) -> dict[str, str]:
    """
    The `serving.properties` with which LMI loads an export as it is.

    Args:
        request: What was compiled, for a release with transformers-neuronx.

    Raises:
        KeyError: The release is none of LMI's.
    """
    front = neuron_front_ends()[request.release.version]
    batch = request.bounds.max_batch_size
    continuous = request.model_type in CONTINUOUS_MODELS and batch > 1
    return {
        "engine": "Python",
        "option.entryPoint": ENTRY_POINT,
        "option.model_loader": "optimum",
        # The loader is refused without it.
        "option.partition_schema": "optimum",
        # `auto` becomes vLLM for large batches.
        "option.rolling_batch": front.rolling_batch,
        "option.rolling_batch_strategy": _STRATEGIES[continuous],
        "option.max_rolling_batch_size": str(batch),
        "option.tensor_parallel_degree": str(request.tensor_parallel_size),
        "option.n_positions": str(request.bounds.max_seq_len),
        "option.dtype": LMI_DTYPES[request.amp],
    }


def optimum_environment(request: NxdRequest) -> dict[str, str]:
    """
    The variables with which the container of vLLM loads an export as it is.

    The numbers follow from the export; they are said so that another folder in its
    place is refused. Nothing is asked of a hub.

    Args:
        request: What was compiled, for a release over NeuronX Distributed.
    """
    return {
        f"{PREFIX}MODEL": MOUNT,
        f"{PREFIX}BATCH_SIZE": str(request.bounds.max_batch_size),
        f"{PREFIX}SEQUENCE_LENGTH": str(request.bounds.max_seq_len),
        f"{PREFIX}TENSOR_PARALLEL_SIZE": str(request.tensor_parallel_size),
        "HF_HUB_OFFLINE": "1",
    }


def optimum_start(
    folder: Folder, release: NeuronRelease, properties: Mapping[str, str]
) -> Verdict:
    """
    What LMI does with an export at start-up.

    Args:
        folder: What lies at `/opt/ml/model`.
        release: A release with transformers-neuronx.
        properties: Entries of `serving.properties`.

    Example:
        `optimum_start(local_folder(path), release, properties).outcome` is `loads` or
        says why not.
    """
    lmi = release.version
    option = {
        name.removeprefix("option."): value.strip()
        for name, value in properties.items()
    }
    if option.get("model_loader") != "optimum":
        return elsewhere(
            f"`option.model_loader` is {option.get('model_loader') or 'not set'}",
            "write `option.model_loader=optimum`",
            lmi=lmi,
        )
    if option.get("partition_schema") != "optimum":
        return fails(
            "the loader is refused unless `option.partition_schema` is optimum",
            "write `option.partition_schema=optimum`",
            lmi=lmi,
        )
    config = json_object(folder, "config.json")
    if isinstance(config, str):
        return fails(config, _AGAIN, lmi=lmi)
    kind = str(config.get("model_type", ""))
    alone = option.get("rolling_batch") == "disable"
    static = alone and kind in CONTINUOUS_MODELS
    if kind not in LMI_MODELS or (static and version_key(lmi) >= _GATED_SINCE):
        batching = " without a rolling batch" if kind in LMI_MODELS else ""
        return fails(
            f"LMI's loader of exports takes no `{kind}`{batching}",
            "set `option.rolling_batch`" if batching else "use the loader `tnx`",
            lmi=lmi,
        )
    block = config.get("neuron")
    if not isinstance(block, dict):
        return compiles(
            "config.json has no `neuron`, so that the model is exported anew",
            _AGAIN,
            lmi=lmi,
        )
    other = _other_shape(option, block, alone=alone, lmi=lmi)
    return other or _export_files(folder, release, block)


def _other_shape(
    option: Mapping[str, str], block: Mapping[str, Any], *, alone: bool, lmi: str
) -> Verdict | None:
    """How LMI refuses an export of other sizes than it is told; None for the same."""
    for name, ours in _CHECKED:
        # Without a rolling batch the server's own batch is compared, one if not set.
        key = "batch_size" if alone and ours == "batch_size" else name
        said = option.get(key, "1" if key == "batch_size" else "")
        if said != str(block.get(ours)):
            return fails(
                f"`option.{key}` is {said or 'not set'}, the export has `{ours}`"
                f" {block.get(ours)}",
                f"write `option.{key}={block.get(ours)}`",
                lmi=lmi,
            )
    return None


def _export_files(
    folder: Folder, release: NeuronRelease, block: Mapping[str, Any]
) -> Verdict:
    # The compiler's own text has a suffix, the catalogue's has none.
    compiled = str(block.get("compiler_version", "")).partition("+")[0]
    lmi = release.version
    if version_key(compiled) > version_key(release.neuronx_cc):
        return fails(
            f"the export was compiled by neuronx-cc {compiled}, newer than the"
            f" {release.neuronx_cc} of LMI {lmi}",
            _AGAIN,
            lmi=lmi,
        )
    graphs = [p for p in folder.inside("compiled").sizes if p.endswith(".neff")]
    if not graphs:
        return fails("there is no NEFF in compiled/", _AGAIN, lmi=lmi)
    if not folder.inside("checkpoint").sizes:
        if block.get("checkpoint_id") is None:
            return fails("there are no weights in checkpoint/", _AGAIN, lmi=lmi)
        return elsewhere(
            f"weights come from the hub: {block['checkpoint_id']}",
            "export from a folder, which copies the weights",
            lmi=lmi,
        )
    drift = (
        f"compiled by neuronx-cc {compiled}; with {release.neuronx_cc} of the image the"
        " names of graphs may be others"
    )
    notes = (drift,) if compiled != release.neuronx_cc else ()
    return loads(f"{len(graphs)} graphs in compiled/", lmi=lmi, notes=notes)


def optimum_serve_start(
    folder: Folder, release: NeuronRelease, environment: Mapping[str, str], family: str
) -> Verdict:
    """
    What the container of vLLM does with an export at start-up.

    Args:
        folder: What lies at `/opt/ml/model`.
        release: A release over NeuronX Distributed.
        environment: Variables of the container.
        family: Of the machine, such as `inf2`.
    """
    at = release.version
    if environment.get(f"{PREFIX}MODEL", "").rstrip("/") != MOUNT:
        return elsewhere(
            f"`{PREFIX}MODEL` is {environment.get(f'{PREFIX}MODEL') or 'not set'}",
            f"set `{PREFIX}MODEL={MOUNT}`",
            lmi=at,
        )
    config = json_object(folder, "config.json")
    export = json_object(folder, "neuron_config.json")
    if isinstance(config, str):
        return fails(config, _AGAIN, lmi=at)
    if isinstance(export, str):
        return fails(f"{export}: the hub is searched for one instead", _AGAIN, lmi=at)
    platform = PLATFORMS.get(family, family)
    for name, wanted in (
        ("optimum_neuron_version", release.optimum_neuron),
        ("neuronxcc_version", release.neuronx_cc),
        ("target", platform),
    ):
        found = str(export.get(name, ""))
        if found.partition("+")[0] != wanted:
            return fails(
                f"neuron_config.json has `{name}` {found or 'not set'}, the container"
                f" takes {wanted} only",
                _AGAIN,
                lmi=at,
            )
    for name, ours in _SERVED:
        said = environment.get(f"{PREFIX}{name}", "")
        if said and said != str(export.get(ours)):
            return fails(
                f"`{PREFIX}{name}` is {said}, the export has `{ours}`"
                f" {export.get(ours)}",
                f"set `{PREFIX}{name}={export.get(ours)}`",
                lmi=at,
            )
    cores = export.get("tp_degree")
    ranks = cores if isinstance(cores, int) else 1
    missing = [name for name in nxd_files(ranks) if not folder.has(name)]
    if missing:
        return fails(f"{missing[0]} is missing", _AGAIN, lmi=at)
    return loads(f"model.pt and the weights of {ranks} cores", lmi=at)
