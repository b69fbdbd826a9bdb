"""What the classes of Transformers NeuronX cannot do with a model's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.tnx_models import tnx_models
from lmi_build.backends.neuronx.tnx_request import BSH
from lmi_build.backends.neuronx.topology import legal_sizes
from lmi_build.backends.problems import refused
from lmi_build.errors import Problem
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.neuronx.tnx_request import TnxRequest

_CORES = "compile.tensor_parallel_size"
# Kinds of `rope_scaling` that `LlamaConfig` takes, 0.12 and 0.13; before, and in other
# classes, it is not read at all.
_ROPE_KINDS = ("default", "llama3")
# `window_slice_kv` takes the cache for `[batch, sequence, ...]`, whatever its layout:
# hlo.py at 0.12 and 0.13.
_WINDOW_ROWS = ("0.12", "0.13")


def class_problems(request: TnxRequest) -> Iterator[Problem]:
    """
    Every reason why a class would compute the model otherwise, or not at all.

    Args:
        request: Its model type, release and dtype are known.
    """
    geometry, tp = request.geometry, request.tensor_parallel_size
    computed = geometry.hidden_size // geometry.num_attention_heads
    if geometry.head_dim != computed:
        yield refused(
            "neuronx.head-size",
            f"heads are {geometry.head_dim} wide; Transformers NeuronX takes hidden"
            f" size over heads for it, {computed}",
            "model.source",
            "set `compile.loader: nxdi` with a release that has it",
        )
    yield from _rope_problems(request)
    yield from _window_problems(request)
    if request.int8 and not request.model.rounds:
        names = sorted(name for name, row in tnx_models().items() if row.rounds)
        yield refused(
            "neuronx.int8-model",
            "Transformers NeuronX scales some 8-bit weights of"
            f" `{request.model_type}` along the wrong dimension; it rounds"
            f" {join_words(names, last='and')} as it should",
            "quantize.method",
            "write `method: none`",
        )
    experts = request.num_experts
    if experts and experts % tp and tp % experts:
        fitting = [
            size
            for size in legal_sizes(request.instance)
            if experts % size == 0 or size % experts == 0
        ]
        near = min(fitting, key=lambda size: abs(size - tp))
        yield Problem(
            code="neuronx.experts",
            message=f"{experts} experts and {tp} cores do not divide each other",
            path=_CORES,
            hint=f"set `tensor_parallel_size: {near}`",
        )


def _window_problems(request: TnxRequest) -> Iterator[Problem]:
    window = request.config.get("sliding_window")
    if request.model_type != "mistral" or not isinstance(window, int):
        return
    wrong = request.continuous and request.release.tnx_row in _WINDOW_ROWS
    plain = request.options.get("cache_layout") != BSH
    if wrong and plain and request.n_positions > window:
        yield refused(
            "neuronx.window",
            f"a window of {window} tokens in {request.n_positions} positions is cut"
            " from the wrong side of the cache with continuous batching: the graph"
            " cannot be built",
            "bounds.max_input_len",
            f"keep prompt and output within {window} tokens, or set"
            " `max_batch_size: 1`",
        )


def _rope_problems(request: TnxRequest) -> Iterator[Problem]:
    scaling = request.config.get("rope_scaling")
    if not isinstance(scaling, dict) or request.model.learned_positions:
        return
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    since = request.model.rope_scaling_since
    row = request.release.tnx_row
    reads = bool(since) and _key(row) >= _key(since)
    if kind == "default" or (reads and kind in _ROPE_KINDS):
        return
    done = "refuses" if reads else "does not read"
    yield refused(
        "neuronx.rope-scaling",
        f"`rope_scaling` is of type `{kind}`, which the class for"
        f" `{request.model_type}` of transformers-neuronx"
        f" {request.release.transformers_neuronx} {done}: positions would be wrong",
        "model.source",
        "set a newer `compile.release`, or another `compile.loader`",
    )


def _key(row: str) -> tuple[int, ...]:
    return tuple(map(int, row.split(".")))
