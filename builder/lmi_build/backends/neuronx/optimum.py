"""
A recipe's call of optimum-neuron.

Two generations: up to 0.0.28 it wraps transformers-neuronx, and takes batch size,
cores, float type and one length; from 0.4 on it has a configuration over NeuronX
Distributed, again with one length that can be set. Neither rounds weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.buckets import (
    context_buckets,
    count_graphs,
    serial_finding,
    token_buckets,
)
from lmi_build.backends.neuronx.calls import Made, NeuronCall
from lmi_build.backends.neuronx.nxd_models import nxd_setup, tnx_setup
from lmi_build.backends.neuronx.nxd_options import (
    handler_finding,
    option_problems,
    settable,
)
from lmi_build.backends.neuronx.nxd_request import CACHE_OFF
from lmi_build.backends.neuronx.nxd_signatures import signature, version_key
from lmi_build.backends.neuronx.optimum_nxd import (
    MODEL_CLASS,
    lower_nxd,
    nxd_arguments,
)
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from lmi_build.backends.neuronx.buckets import Graphs
    from lmi_build.backends.neuronx.nxd_models import TnxSetup
    from lmi_build.backends.neuronx.nxd_request import NxdRequest
    from lmi_build.catalog.neuron_releases import NeuronRelease

TASK = "text-generation"
_CONTEXT = "max_context_length"
# What transformers-neuronx adds to the compiler's flags, compiler.py at 0.10 to 0.13.
_TNX_FLAGS = ("--model-type=transformer", "--auto-cast=none")
# First versions of optimum-neuron that pass these on, modeling_decoder.py at v0.0.22
# and v0.0.25.
_LAYOUT_SINCE, _FUSED_SINCE = (0, 0, 22), (0, 0, 25)


def generation(release: NeuronRelease) -> str:
    """
    Which optimum-neuron a release has: `tnx` over transformers-neuronx, else `nxd`.

    Args:
        release: Row of the catalogue.
    """
    return "tnx" if release.transformers_neuronx else "nxd"


def lower_optimum(request: NxdRequest) -> NeuronCall:
    """
    The call that exports a model; `optimum_problems` found nothing.

    Args:
        request: What is compiled.

    Raises:
        KeyError: The model type or the version has no row.

    Example:
        >>> call = lower_optimum(request)
        >>> call.arguments["sequence_length"]
        1536
    """
    if generation(request.release) == "tnx":
        return _lower_tnx(request)
    return lower_nxd(request)


def optimum_problems(request: NxdRequest) -> Iterator[Problem]:
    """
    Every reason why optimum-neuron cannot export a model as the recipe says.

    Whether it has the model type at all, and whether the cores can share a layer, is
    asked elsewhere.

    Args:
        request: What is compiled.
    """
    version = request.release.optimum_neuron
    if request.method != "none":
        yield Problem(
            code="neuronx.rounding",
            message=f"optimum-neuron {version} has no argument that rounds weights, and"
            " reads no rounded checkpoint",
            path="quantize.method",
            hint="write `method: none`, or `compile.loader: tnx`, which takes `int8`",
            unsupported=True,
        )
    tnx = generation(request.release) == "tnx"
    # Each of the older one's arguments follows from the recipe.
    known = {} if tnx else settable(signature("optimum", version).arguments)
    if not tnx and _CONTEXT in request.options:
        yield Problem(
            code="compile.owned-option",
            message=f"`{_CONTEXT}` cannot be set: this exporter makes the mask of a"
            " prompt as long as the sequence, and no other length compiles",
            path=f"compile.options.{_CONTEXT}",
            hint="remove the line",
        )
    rest = {name: v for name, v in request.options.items() if name != _CONTEXT or tnx}
    checked = replace(request, options=rest)
    yield from option_problems(checked, known, what=f"optimum-neuron {version}")
    if tnx:
        return
    setup = nxd_setup(request.model_type)
    if setup is not None and not setup.continuous and request.bounds.max_batch_size > 1:
        yield Problem(
            code="neuronx.static-batch",
            message=f"optimum-neuron {version} batches `{request.model_type}` as a"
            " whole: a request that joins overwrites the cache of those that run",
            path="bounds.max_batch_size",
            hint="write `max_batch_size: 1`",
            unsupported=True,
        )


def optimum_findings(request: NxdRequest) -> tuple[str, ...]:
    """
    What a user should know of a request that can be built.

    Args:
        request: What is compiled.
    """
    if generation(request.release) == "tnx":
        _, contexts = _tnx_buckets(request, _tnx(request))
        finding = serial_finding(contexts, request.bounds.max_input_len)
    else:
        finding = (
            f"each prompt is computed as {request.bounds.max_seq_len} tokens: there is"
            " one graph for prompts, as long as prompt and output together"
        )
    found = (finding, handler_finding(request.release))
    return tuple(text for text in found if text)


def optimum_graphs(request: NxdRequest) -> Graphs:
    """
    How many graphs are compiled.

    Args:
        request: What is compiled.
    """
    if generation(request.release) == "nxd":
        return count_graphs((0,), (0,), batch_sizes=(1,), context_batch_sizes=(1,))
    setup = _tnx(request)
    tokens, contexts = _tnx_buckets(request, setup)
    batch = request.bounds.max_batch_size
    return count_graphs(
        tokens,
        contexts,
        batch_sizes=(batch,),
        context_batch_sizes=(1 if _continuous(request, setup) else batch,),
        context_unrolled=setup.context_graphs == "whole" or request.num_layers == 1,
    )


def inner_call(request: NxdRequest) -> NeuronCall:
    """
    What optimum-neuron of the older generation asks transformers-neuronx for.

    It is what every start asks for again, out of the `neuron` block of `config.json`.

    Args:
        request: What is compiled.

    Raises:
        KeyError: The model type has no row.

    Source: `NeuronDecoderModel.__init__` in neuron/modeling_decoder.py, v0.0.20 to
    v0.0.27.
    """
    setup = _tnx(request)
    version = version_key(request.release.optimum_neuron)
    total, batch = request.bounds.max_seq_len, request.bounds.max_batch_size
    config: dict[str, Any] = {}
    if _continuous(request, setup):
        path = "transformers_neuronx.config.ContinuousBatchingConfig"
        shared = {"batch_size_for_shared_caches": batch}
        config["continuous_batching"] = Made(factory=path, arguments=shared)
    if version >= _LAYOUT_SINCE:
        config["attention_layout"] = setup.attention_layout
    if version >= _FUSED_SINCE:
        config["fuse_qkv"] = True
    arguments: dict[str, Any] = {
        "batch_size": batch,
        "tp_degree": request.tensor_parallel_size,
        "amp": request.amp,
    }
    if config:
        path = "transformers_neuronx.config.NeuronConfig"
        arguments["neuron_config"] = Made(factory=path, arguments=config)
    if _continuous(request, setup):
        arguments["n_positions"] = [total]
        arguments["context_length_estimate"] = [total]
    else:
        arguments["n_positions"] = total
    graphs = optimum_graphs(request).total
    return NeuronCall(
        loader="tnx",
        model_class=setup.model_class,
        arguments=arguments,
        steps=(("to_neuron", {}),),
        environment={},
        flags=_TNX_FLAGS,
        num_graphs=graphs,
        num_neffs=graphs,
        files=(),
        target=request.family,
    )


def neuron_block(request: NxdRequest) -> Mapping[str, str | int | None]:
    """
    What the older generation writes into `config.json` under `neuron`.

    Args:
        request: What is compiled.

    Source: `get_export_config` in neuron/modeling_decoder.py, v0.0.20 to v0.0.27.
    """
    return {
        "task": TASK,
        "batch_size": request.bounds.max_batch_size,
        "num_cores": request.tensor_parallel_size,
        "auto_cast_type": request.amp,
        "sequence_length": request.bounds.max_seq_len,
        "compiler_type": "neuronx-cc",
        "compiler_version": request.release.neuronx_cc,
        "checkpoint_id": None,
        "checkpoint_revision": None,
    }


def optimum_expected(request: NxdRequest) -> Mapping[str, Any]:
    """
    What the driver must say that the call became.

    Args:
        request: What is compiled.
    """
    if generation(request.release) == "nxd":
        newer = nxd_setup(request.model_type)
        return nxd_arguments(request, newer) if newer is not None else {}
    setup = _tnx(request)
    tokens, contexts = _tnx_buckets(request, setup)
    found = {"token_buckets": list(tokens)}
    if setup.continuous:
        found["context_buckets"] = list(contexts)
    return found


def _lower_tnx(request: NxdRequest) -> NeuronCall:
    graphs = optimum_graphs(request).total
    return NeuronCall(
        loader="optimum",
        model_class=MODEL_CLASS,
        arguments={
            "export": True,
            "num_cores": request.tensor_parallel_size,
            "auto_cast_type": request.amp,
            "task": TASK,
            "batch_size": request.bounds.max_batch_size,
            "sequence_length": request.bounds.max_seq_len,
        },
        steps=(("save_pretrained", {"save_directory": {"path": "."}}),),
        environment=CACHE_OFF,
        flags=_TNX_FLAGS,
        num_graphs=graphs,
        num_neffs=graphs,
        files=("checkpoint/config.json", "config.json"),
        target=request.family,
    )


def _tnx(request: NxdRequest) -> TnxSetup:
    setup = tnx_setup(request.model_type)
    if setup is None:
        raise KeyError(request.model_type)
    return setup


def _continuous(request: NxdRequest, setup: TnxSetup) -> bool:
    return setup.continuous and request.bounds.max_batch_size > 1


def _tnx_buckets(
    request: NxdRequest, setup: TnxSetup
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths of the graphs for tokens, and of those for prompts."""
    total = request.bounds.max_seq_len
    if _continuous(request, setup):
        return (total,), (total,)
    tokens = token_buckets(total)
    estimate = 0 if setup.context_graphs == "none" else None
    return tokens, context_buckets(estimate, tokens)
