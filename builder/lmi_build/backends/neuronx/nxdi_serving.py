"""
What serves a model of NxD Inference in LMI, and what it does with it at start.

LMI hands the folder to its vLLM, which takes `model.pt` in it for the compiled model
and makes a configuration of its own beside the one that lies there.

Source: djl-serving 0.32.0-dlc to 0.34.0-dlc, `NxdiVllmModelLoader` in
neuron_utils/model_loader.py and properties_manager/vllm_rb_properties.py; AWS's vLLM,
branch v0.6.x-neuron, model_executor/model_loader/neuronx_distributed.py; NxD Inference
0.1.1, models/application_base.py.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.calls import plain
from lmi_build.backends.neuronx.front_ends import ENTRY_POINT
from lmi_build.backends.neuronx.nxd_folder import json_object
from lmi_build.backends.neuronx.nxd_request import LMI_DTYPES
from lmi_build.backends.neuronx.nxdi import SAMPLING, neuron_config, nxdi_files
from lmi_build.backends.verdicts import Verdict, compiles, elsewhere, fails, loads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.neuronx.nxd_request import NxdRequest
    from lmi_build.catalog.neuron_releases import NeuronRelease

# `_NEURON_SUPPORTED_MODELS` of that vLLM, without its models for pictures.
ARCHITECTURES = ("DbrxForCausalLM", "LlamaForCausalLM", "MixtralForCausalLM")
# Kept by the compiled model alone: vLLM would ask for a checkpoint it does not need.
STORED = (
    "quantized",
    "quantized_checkpoints_path",
    "quantization_dtype",
    "quantization_type",
)
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_COMPARED = (
    ("tensor_parallel_degree", "tp_degree"),
    ("max_rolling_batch_size", "batch_size"),
    ("n_positions", "seq_len"),
)
_OVERRIDE = "override_neuron_config"
_AGAIN = "build the artifact again for this release"


def nxdi_properties(request: NxdRequest) -> dict[str, str]:
    """
    The `serving.properties` with which LMI loads a compiled model as it is.

    Args:
        request: What was compiled.
    """
    entries = {
        "engine": "Python",
        "option.entryPoint": ENTRY_POINT,
        "option.model_loader": "nxdi",
        "option.rolling_batch": "vllm",
        "option.max_rolling_batch_size": str(request.bounds.max_batch_size),
        "option.tensor_parallel_degree": str(request.tensor_parallel_size),
        "option.n_positions": str(request.bounds.max_seq_len),
        "option.dtype": LMI_DTYPES[request.amp],
    }
    usual = vllm_config(entries)
    wanted = plain(neuron_config(request))
    override = {
        name: value
        for name, value in wanted.items()
        if name not in STORED and usual.get(name) != value
    }
    # Read as a literal of Python, and asked for its items even where it is empty.
    return {**entries, f"option.{_OVERRIDE}": repr(override)}


def vllm_config(properties: Mapping[str, str]) -> dict[str, Any]:
    """
    What vLLM gives to `NeuronConfig`, made from the properties of LMI.

    Args:
        properties: Entries of `serving.properties`.

    Raises:
        ValueError: A number is none, or the override is no mapping.
        KeyError: A property that decides is not set.

    Source: `_get_default_neuron_config` and `_get_neuron_config_after_override`.
    """
    batch = int(properties["option.max_rolling_batch_size"])
    length = int(properties["option.n_positions"])
    return {
        "tp_degree": int(properties["option.tensor_parallel_degree"]),
        "ctx_batch_size": 1,
        "batch_size": batch,
        "max_context_length": length,
        "seq_len": length,
        "enable_bucketing": True,
        "is_continuous_batching": batch > 1,
        "quantized": False,
        "torch_dtype": _DTYPES[properties["option.dtype"]],
        "padding_side": "right",
        "on_device_sampling_config": dict(SAMPLING),
        "sequence_parallel_enabled": True,
        **_override(properties.get(f"option.{_OVERRIDE}", "{}")),
    }


def nxdi_start(
    folder: Folder, release: NeuronRelease, properties: Mapping[str, str]
) -> Verdict:
    """
    What LMI does with a compiled model at start-up.

    Args:
        folder: What lies at `/opt/ml/model`.
        release: A release with NxD Inference.
        properties: Entries of `serving.properties`.

    Example:
        `nxdi_start(local_folder(path), release, properties).outcome` is `loads` or says
        why not.
    """
    lmi = release.version
    for name, wanted in (("model_loader", "nxdi"), ("rolling_batch", "vllm")):
        found = properties.get(f"option.{name}", "").strip()
        if found != wanted:
            return elsewhere(
                f"`option.{name}` is {found or 'not set'}",
                f"write `option.{name}={wanted}`",
                lmi=lmi,
            )
    if f"option.{_OVERRIDE}" not in properties:
        return fails(
            f"`option.{_OVERRIDE}` is not set, and vLLM asks it for its items",
            f"write `option.{_OVERRIDE}={{}}`",
            lmi=lmi,
        )
    try:
        asked = vllm_config(properties)
    except (KeyError, ValueError) as error:
        return fails(f"the properties cannot be read: {error}", _AGAIN, lmi=lmi)
    config = json_object(folder, "config.json")
    if isinstance(config, str):
        return fails(config, _AGAIN, lmi=lmi)
    named = config.get("architectures") or []
    if not any(name in ARCHITECTURES for name in named):
        return fails(f"its vLLM has none of the architectures {named}", _AGAIN, lmi=lmi)
    if not folder.has("model.pt"):
        return compiles("there is no model.pt at the root", _AGAIN, lmi=lmi)
    return _compiled(folder, properties, asked, lmi)


def _compiled(
    folder: Folder,
    properties: Mapping[str, str],
    asked: Mapping[str, Any],
    lmi: str,
) -> Verdict:
    """The model that lies there, against what the properties make of it."""
    document = json_object(folder, "neuron_config.json")
    stored = document if isinstance(document, str) else document.get("neuron_config")
    if not isinstance(stored, dict):
        reason = (
            stored if isinstance(stored, str) else "neuron_config.json says nothing"
        )
        return compiles(f"{reason}, so that vLLM compiles", _AGAIN, lmi=lmi)
    for name, ours in _COMPARED:
        if stored.get(ours) != asked[ours]:
            return fails(
                f"`option.{name}` is {asked[ours]}, the model was compiled with"
                f" `{ours}` {stored.get(ours)}",
                f"write `option.{name}={stored.get(ours)}`",
                lmi=lmi,
            )
    for name, value in _override(properties[f"option.{_OVERRIDE}"]).items():
        if name in stored and stored[name] != value:
            return fails(
                f"`option.{_OVERRIDE}` makes `{name}` {value}, the model was compiled"
                f" with {stored[name]}",
                f"write {stored[name]}",
                lmi=lmi,
            )
    sampled = stored.get("on_device_sampling_config") is not None
    if sampled != (asked["on_device_sampling_config"] is not None):
        return fails(
            "the model draws tokens on the cores, or not, and vLLM the other way",
            _AGAIN,
            lmi=lmi,
        )
    if stored.get("save_sharded_checkpoint") is not True:
        return fails(
            "the weights were not split over cores when it was compiled",
            _AGAIN,
            lmi=lmi,
        )
    ranks = int(asked["tp_degree"])
    missing = [name for name in nxdi_files(ranks) if not folder.has(name)]
    if missing:
        return compiles(
            f"{missing[0]} is missing, so that vLLM compiles", _AGAIN, lmi=lmi
        )
    return loads(f"model.pt and the weights of {ranks} cores", lmi=lmi)


def _override(text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"`option.{_OVERRIDE}` is no literal of Python") from error
    if not isinstance(value, dict):
        raise ValueError(f"`option.{_OVERRIDE}` is no mapping")  # noqa: TRY004
    return value
