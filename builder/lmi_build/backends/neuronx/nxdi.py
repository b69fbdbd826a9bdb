"""
A recipe's call of NxD Inference.

In LMI it is vLLM that makes the configuration, out of its own defaults and of
`option.override_neuron_config`; what is compiled here is what vLLM would make.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.calls import NeuronCall
from lmi_build.backends.neuronx.models import neuron_models
from lmi_build.backends.neuronx.nxd_buckets import bucket_list
from lmi_build.backends.neuronx.nxd_models import nxdi_setup
from lmi_build.backends.neuronx.nxd_options import (
    context_length_problems,
    cropped_prompts,
    handler_finding,
    option_problems,
    settable,
)
from lmi_build.backends.neuronx.nxd_request import TORCH_DTYPES
from lmi_build.backends.neuronx.nxd_signatures import Argument, signature, version_key
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from lmi_build.backends.neuronx.nxd_models import NxdiSetup
    from lmi_build.backends.neuronx.nxd_request import NxdRequest
    from lmi_build.digest import JSONValue

METHODS = ("none", "int8")
# Rounded weights are written here, read when they are split over cores, and removed.
QUANTIZED = "quantized"
# vLLM's defaults for on-device sampling, with which its runner calls the model:
# `_get_default_neuron_config` in model_loader/neuronx_distributed.py of AWS's vLLM 0.6.
SAMPLING: Mapping[str, bool | int] = {
    "global_topk": 64,
    "dynamic": True,
    "deterministic": False,
}
# Our names of two lists, by the names of NxD Inference.
BUCKETS: Mapping[str, str] = {
    "context_encoding_buckets": "context_buckets",
    "token_generation_buckets": "token_buckets",
}
# From here on the rows that hold weights are written only when asked for, and a prompt
# that is too long is refused: NeuronConfig at 0.2 and 0.3.
_TRUNCATION_SINCE, _SHARDS_ASKED_SINCE = (0, 2), (0, 3)
# `ModelWrapper.__init__` in models/model_wrapper.py at 0.1.1.
_FLAGS = (
    "--auto-cast=none --model-type=transformer"
    " --tensorizer-options='--enable-ccop-compute-overlap"
    " --cc-pipeline-tiling-factor={tiling} --vectorize-dge-dma"
    " --vectorize-strided-dma ' -O1 --internal-num-neuroncores-per-sengine={cores}"
)
_MOE_FLAGS = " --internal-enable-dge-levels vector_dynamic_offsets"
_FLOAT32_FLAGS = " --auto-cast=none"


def lower_nxdi(request: NxdRequest) -> NeuronCall:
    """
    The call that compiles a model; `nxdi_problems` found nothing.

    Args:
        request: What is compiled.

    Raises:
        KeyError: The model type or the version has no row.

    Example:
        >>> call = lower_nxdi(request)
        >>> call.arguments["neuron_config"]["max_context_length"]
        1024
    """
    setup = _setup(request.model_type)
    steps: list[tuple[str, Mapping[str, Any]]] = []
    if request.method == "int8":
        steps.append(("save_quantized_state_dict", {}))
    steps.append(("compile", {"compiled_model_path": {"path": "."}}))
    return NeuronCall(
        loader="nxdi",
        model_class=neuron_models()[request.model_type].loaders["nxdi"].model_class,
        arguments={"neuron_config": neuron_config(request)},
        steps=tuple(steps),
        environment={"NEURON_PLATFORM_TARGET_OVERRIDE": request.family},
        flags=_flags(request, setup),
        num_graphs=sum(len(buckets) for buckets in nxdi_buckets(request)),
        num_neffs=0,
        files=nxdi_files(request.tensor_parallel_size),
        target=request.family,
    )


def neuron_config(request: NxdRequest) -> dict[str, Any]:
    """
    Keyword arguments of `NeuronConfig`, or of the class for experts.

    Args:
        request: What is compiled.
    """
    options = dict(request.options)
    batch = request.bounds.max_batch_size
    config: dict[str, Any] = {
        "tp_degree": request.tensor_parallel_size,
        "ctx_batch_size": 1,
        "batch_size": batch,
        "max_context_length": request.max_context_length,
        "seq_len": request.bounds.max_seq_len,
        "enable_bucketing": True,
        "is_continuous_batching": batch > 1,
        "quantized": False,
        "torch_dtype": TORCH_DTYPES[request.amp],
        "padding_side": "right",
        "on_device_sampling_config": dict(SAMPLING),
        "sequence_parallel_enabled": not sequence_parallel_misfits(request),
    }
    for native, ours in BUCKETS.items():
        if ours in options:
            config[native] = sorted(_lengths(options.pop(ours)))
    if version_key(request.release.nxdi) >= _SHARDS_ASKED_SINCE:
        config["save_sharded_checkpoint"] = True
    if request.method == "int8":
        config |= {
            "quantized": True,
            "quantized_checkpoints_path": {"path": QUANTIZED},
            "quantization_dtype": "int8",
            # Of the two it has, the one with a scale per output channel.
            "quantization_type": "per_channel_symmetric",
        }
    return {**config, **options}


def nxdi_buckets(request: NxdRequest) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """
    Lengths that have a graph: those of prompts, then those of the cache.

    Args:
        request: What is compiled.
    """
    enabled = request.options.get("enable_bucketing", True) is not False
    return (
        bucket_list(
            _given(request, "context_buckets"),
            request.max_context_length,
            enabled=enabled,
        ),
        bucket_list(
            _given(request, "token_buckets"),
            request.bounds.max_seq_len,
            enabled=enabled,
        ),
    )


def nxdi_expected(request: NxdRequest) -> Mapping[str, Any]:
    """
    What the driver must say that the call became: buckets by the library's own tags.

    Args:
        request: What is compiled.
    """
    contexts, tokens = nxdi_buckets(request)
    return {
        "context_encoding_model": list(contexts),
        "token_generation_model": list(tokens),
    }


def sequence_parallel_misfits(request: NxdRequest) -> tuple[int, ...]:
    """
    Context buckets whose rows cores cannot share evenly, so that they keep them all.

    Args:
        request: What is compiled.
    """
    contexts, _ = nxdi_buckets(request)
    cores = request.tensor_parallel_size
    return tuple(length for length in contexts if length % cores)


def nxdi_files(num_ranks: int) -> tuple[str, ...]:
    """
    What a compiled folder holds at least, sorted.

    Args:
        num_ranks: Cores that share each layer.

    Source: `compile` in models/application_base.py, 0.1.1 and 0.9.
    """
    shards = (
        f"weights/tp{rank}_sharded_checkpoint.safetensors" for rank in range(num_ranks)
    )
    return tuple(sorted(("model.pt", "neuron_config.json", *shards)))


def nxdi_problems(request: NxdRequest) -> Iterator[Problem]:
    """
    Every reason why NxD Inference cannot compile a model as the recipe says.

    Whether it has the model type at all, and whether the cores can share a layer, is
    asked elsewhere.

    Args:
        request: What is compiled.
    """
    version = request.release.nxdi
    setup = nxdi_setup(request.model_type)
    moe = setup is not None and setup.moe
    yield from _method_problems(request, moe=moe)
    arguments = dict(settable(signature("nxdi", version).known(moe=moe)))
    arguments |= {ours: Argument(kind="list") for ours in BUCKETS.values()}
    found = list(option_problems(request, arguments, what=f"NxD Inference {version}"))
    yield from found
    if not found:
        yield from context_length_problems(request)
        yield from _bucket_problems(request)
        yield from _sequence_parallel_problems(request)


def nxdi_findings(request: NxdRequest) -> tuple[str, ...]:
    """
    What a user should know of a request that can be built.

    Args:
        request: What is compiled.
    """
    found = []
    refuses = version_key(request.release.nxdi) >= _TRUNCATION_SINCE
    if cropped := cropped_prompts(request, refuses=refuses):
        found.append(cropped)
    misfits = sequence_parallel_misfits(request)
    if misfits and "sequence_parallel_enabled" not in request.options:
        found.append(
            f"context buckets {list(misfits)} do not divide by the"
            f" {request.tensor_parallel_size} cores: norms are computed whole on each"
        )
    if request.method == "int8":
        found.append("the vocabulary head is rounded as well")
    if broken := handler_finding(request.release):
        found.append(broken)
    return tuple(found)


def _method_problems(request: NxdRequest, *, moe: bool) -> Iterator[Problem]:
    version = request.release.nxdi
    if request.method not in METHODS:
        yield Problem(
            code="neuronx.rounding",
            message=f"NxD Inference {version} reads no `{request.method}` checkpoint:"
            " it rounds float weights itself",
            path="quantize.method",
            hint="write `method: int8`, or `method: none`",
            unsupported=True,
        )
    elif request.method == "int8" and moe:
        yield Problem(
            code="neuronx.rounding",
            message=f"NxD Inference {version} rounds linear layers; the experts of"
            f" `{request.model_type}` are none",
            path="quantize.method",
            hint="write `method: none`",
            unsupported=True,
        )


def _bucket_problems(request: NxdRequest) -> Iterator[Problem]:
    total, longest = request.bounds.max_seq_len, request.max_context_length
    for name, last, what in (
        ("context_buckets", longest, "the longest prompt"),
        ("token_buckets", total, "prompt and output"),
    ):
        if name not in request.options:
            continue
        value, path = request.options[name], f"compile.options.{name}"
        values = value if isinstance(value, list) else []
        if not values or not all(type(item) is int and item > 0 for item in values):
            yield Problem(
                code="compile.bad-option",
                message=f"`{name}` is {value!r}, it must be a list of whole numbers",
                path=path,
                hint=f"write `{name}: [{last}]`",
            )
        elif max(item for item in values if isinstance(item, int)) != last:
            yield Problem(
                code="neuronx.bucket-end",
                message=f"`{name}` ends at {max(_lengths(values))}, not at the {last}"
                f" tokens of {what}",
                path=path,
                hint=f"make {last} its last length, or remove the line",
            )
        elif request.options.get("enable_bucketing") is False:
            yield Problem(
                code="neuronx.bucket-end",
                message=f"without `enable_bucketing` `{name}` would not be read",
                path=path,
                hint="remove one of the two lines",
            )


def _sequence_parallel_problems(request: NxdRequest) -> Iterator[Problem]:
    name = "sequence_parallel_enabled"
    misfits = sequence_parallel_misfits(request)
    if request.options.get(name) is True and misfits:
        cores = request.tensor_parallel_size
        yield Problem(
            code="neuronx.sequence-parallel",
            message=f"`{name}` splits the rows of a prompt over {cores} cores; the"
            f" bucket of {misfits[0]} does not divide",
            path=f"compile.options.{name}",
            hint=f"make context buckets multiples of {cores}, such as"
            f" {-(-misfits[0] // cores) * cores}, or remove the line",
        )


def _setup(model_type: str) -> NxdiSetup:
    setup = nxdi_setup(model_type)
    if setup is None:
        raise KeyError(model_type)
    return setup


def _given(request: NxdRequest, name: str) -> tuple[int, ...] | None:
    value = request.options.get(name)
    return _lengths(value) if value is not None else None


def _lengths(value: JSONValue | Sequence[JSONValue]) -> tuple[int, ...]:
    items = value if isinstance(value, list | tuple) else ()
    return tuple(item for item in items if isinstance(item, int))


def _flags(request: NxdRequest, setup: NxdiSetup) -> tuple[str, ...]:
    """The compiler's flags; empty where a version's were not read."""
    if version_key(request.release.nxdi) >= _TRUNCATION_SINCE:
        return ()
    if setup.flags:
        precise = _FLOAT32_FLAGS if request.amp == "f32" else ""
        return tuple(shlex.split(setup.flags + precise + _MOE_FLAGS))
    text = _FLAGS.format(
        tiling=request.options.get("cc_pipeline_tiling_factor", 2),
        cores=request.options.get("logical_neuron_cores", 1),
    )
    return tuple(shlex.split(text))
