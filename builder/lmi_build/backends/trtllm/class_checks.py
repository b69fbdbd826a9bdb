"""
What a model computes and TensorRT-LLM's class for it does not.

Sources: TensorRT-LLM 0.8.0 to 0.16, models/*/model.py for what each class can compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.checkpoint_config import (
    ACTIVATIONS,
    activation,
    norm_epsilon,
    rope,
)
from lmi_build.backends.trtllm.models import is_since, value_at
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lmi_build.backends.trtllm.source_model import SourceModel

# The classes of these families leave LayerNorm at this.
FIXED_EPSILON = {"opt": 1e-5, "gptneox": 1e-5}


def class_problems(
    model: SourceModel, config: Mapping[str, Any], version: str
) -> Iterator[Problem]:
    """What the model computes and TensorRT-LLM's class for it does not."""
    geometry, row = model.geometry, model.row
    share = geometry.hidden_size // geometry.num_attention_heads
    if geometry.head_dim != share and not is_since(version, row.head_size):
        since = f" before {row.head_size}" if row.head_size else ""
        yield _unlike(model, f"heads are {geometry.head_dim} wide, not {share}{since}")
    if not model.num_experts and activation(model, config) not in ACTIVATIONS:
        yield _unlike(model, f"the activation is `{activation(model, config)}`")
    if model.architecture.rotary:
        yield from _rope_problems(model, config, version)
    if model.shared_head and model.shapes and not model.tied:
        yield _unlike(model, "its head is not its embedding")
    fixed = FIXED_EPSILON.get(row.family)
    if fixed is not None and norm_epsilon(model, config) != fixed:
        yield _unlike(
            model, f"norms add {norm_epsilon(model, config):g}, not {fixed:g}"
        )
    for key, allowed in model.architecture.must.items():
        value = config.get(key)
        meant = "none" if value is None else value
        if value is not None and meant not in allowed:
            yield _unlike(model, f"`{key}` is {value}")
    yield from _family_problems(model, config)


def _rope_problems(
    model: SourceModel, config: Mapping[str, Any], version: str
) -> Iterator[Problem]:
    _, partial, kind, _ = rope(model, config)
    known = (value_at(model.row.rope, version) or "").split()
    if kind != "default" and kind not in known:
        yield _unlike(
            model,
            f"its rotary embedding is stretched by `{kind}`, {version} knows"
            f" {', '.join(known) or 'none'}",
        )
    if partial != 1.0 and model.row.family != "gptneox":
        yield _unlike(model, f"only {partial:g} of a head turns")


def _family_problems(
    model: SourceModel, config: Mapping[str, Any]
) -> Iterator[Problem]:
    check = _FAMILY_FAULTS.get(model.row.family)
    if check is not None:
        yield from (_unlike(model, fault) for fault in check(model, config))


def _gptneox_faults(model: SourceModel, config: Mapping[str, Any]) -> Iterator[str]:
    inner, hidden = model.geometry.intermediate_size, model.geometry.hidden_size
    if config.get("use_parallel_residual") is False:
        yield "`use_parallel_residual` is false"
    if inner != 4 * hidden:
        yield f"its intermediate size is {inner}, not four times {hidden}"


def _opt_faults(model: SourceModel, config: Mapping[str, Any]) -> Iterator[str]:
    width = config.get("word_embed_proj_dim", model.geometry.hidden_size)
    if width != model.geometry.hidden_size:
        yield f"`word_embed_proj_dim` is {width}"


def _gpt_faults(_model: SourceModel, config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("scale_attn_by_inverse_layer_idx"):
        yield "`scale_attn_by_inverse_layer_idx` is true"
    if config.get("scale_attn_weights") is False:
        yield "`scale_attn_weights` is false"


def _qwen_faults(model: SourceModel, config: Mapping[str, Any]) -> Iterator[str]:
    layers = model.geometry.num_layers
    first = int(config.get("max_window_layers", layers))
    if config.get("use_sliding_window") and first < layers:
        yield f"blocks from {first} on see only a window"


_FAMILY_FAULTS: Mapping[
    str, Callable[[SourceModel, Mapping[str, Any]], Iterator[str]]
] = {
    "gptneox": _gptneox_faults,
    "opt": _opt_faults,
    "gpt": _gpt_faults,
    "qwen": _qwen_faults,
}


def bias_problems(model: SourceModel) -> Iterator[Problem]:
    """Biases that the class does not have, or always has."""
    architecture = model.architecture
    block = architecture.block(0)

    def has(module: str) -> bool:
        return f"{block}.{module}.bias" in model.shapes

    first, output = has(architecture.projections[0]), has(architecture.output)
    mlp = [] if model.num_experts else [*architecture.widening, architecture.down]
    found = {has(module) for module in mlp}
    family = model.row.family
    if family in {"llama", "gemma"} and (first != output or len(found) > 1):
        yield _unlike(model, "some of its linears have biases and others do not")
    if family == "qwen" and (not first or output or True in found):
        yield _unlike(model, "its biases are not those of q, k and v alone")
    if family in {"gpt", "opt", "gptneox"} and not (
        first and output and found == {True}
    ):
        yield _unlike(model, "some of its linears lack a bias")


def _unlike(model: SourceModel, fault: str) -> Problem:
    return Problem(
        code="trtllm.unlike",
        message=f"TensorRT-LLM's `{model.row.name}` computes otherwise: {fault}",
        path="model.source",
        hint="choose another model, or a newer TensorRT-LLM",
        unsupported=True,
    )
