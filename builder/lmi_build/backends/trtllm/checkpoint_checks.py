"""
Whether lmi-build can write a model's TensorRT-LLM checkpoint, from headers alone.

Sources: TensorRT-LLM 0.8.0 to 0.16, models/*/model.py for what each class can compute,
mapping.py for how it splits layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.checkpoint_config import (
    ACTIVATIONS,
    activation,
    norm_epsilon,
    rope,
)
from lmi_build.backends.trtllm.checkpoint_plan import (
    SourceModel,
    layer_linears,
    plan_checkpoint,
)
from lmi_build.backends.trtllm.checkpoint_sources import source_problems
from lmi_build.backends.trtllm.models import (
    is_since,
    known_architectures,
    trtllm_models,
    value_at,
)
from lmi_build.catalog.architectures import architectures
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
    from lmi_build.values.model import ModelGeometry

TENSOR_PATH = "compile.tensor_parallel_size"
PIPELINE_PATH = "compile.pipeline_parallel_size"
# The classes of these families leave LayerNorm at this.
FIXED_EPSILON = {"opt": 1e-5, "gptneox": 1e-5}
# What a mixture's experts may be quantized to.
EXPERT_ALGORITHMS = ("W8A16",)
DTYPES = ("float16", "bfloat16", "float32")


def source_model(
    geometry: ModelGeometry,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    version: str,
    dtype: str,
    quantized: frozenset[str] = frozenset(),
) -> SourceModel:
    """
    What is to be converted.

    Args:
        geometry: The model's sizes.
        config: Its `config.json`.
        shapes: Shape of every tensor of its files.
        version: Of TensorRT-LLM.
        dtype: Of the checkpoint.
        quantized: Linears that the files hold as codes.

    Raises:
        KeyError: Its architecture is not one that `checkpoint_problems` lets through.
    """
    name = geometry.architecture
    architecture = architectures()[name].locate(shapes)
    key = architecture.keys.get("num_experts", "num_experts")
    row = trtllm_models()[name]
    return SourceModel(
        row=row,
        architecture=architecture,
        geometry=geometry,
        shapes=shapes,
        dtype=dtype,
        num_experts=int(config.get(key) or 0) if architecture.experts else 0,
        parallel_embedding=is_since(version, row.parallel_embedding),
        shared_head=bool(value_at(row.shared_head, version)),
        quantized=quantized,
    )


def checkpoint_problems(  # noqa: PLR0913 - the model, and what it becomes
    geometry: ModelGeometry,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    version: str,
    dtype: str,
    mapping: Mapping2D,
    quantized: frozenset[str] = frozenset(),
    quant_algo: str = "",
    group_size: int = 0,
) -> Iterator[Problem]:
    """
    Every reason why the checkpoint cannot be written.

    Args:
        geometry: The model's sizes.
        config: Its `config.json`.
        shapes: Shape of every tensor, from the headers; empty if they are not known,
            which leaves out the checks of tensors.
        version: Of TensorRT-LLM.
        dtype: Of the checkpoint.
        mapping: How it is to be split.
        quantized: Linears that the files hold as codes.
        quant_algo: What they become; empty for float.
        group_size: Inputs per scale, where there are groups.
    """
    refused = architecture_problem(geometry.architecture, version)
    if refused is not None:
        yield refused
        return
    if dtype not in DTYPES:
        yield Problem(
            code="trtllm.dtype",
            message=f"a checkpoint cannot hold {dtype}",
            path="model.dtype",
            hint=f"choose one of {', '.join(DTYPES)}",
        )
    model = source_model(
        geometry, config, shapes, version=version, dtype=dtype, quantized=quantized
    )
    problems = [
        *_class_problems(model, config, version),
        *split_problems(model, mapping, version),
    ]
    if quant_algo and not problems:
        problems += _layout_problems(model, mapping, quant_algo, group_size)
    yield from problems
    if shapes and not problems:
        yield from _bias_problems(model)
        yield from source_problems(model, plan_checkpoint(model, mapping))


def architecture_problem(name: str, version: str) -> Problem | None:
    """Why a version does not have an architecture, or lmi-build no writer for it."""
    row = trtllm_models().get(name)
    if row is None or not row.supported(version):
        since = f"; it came with {row.since}" if row else ""
        return Problem(
            code="trtllm.architecture",
            message=f"TensorRT-LLM {version} has no `{name}`{since}",
            path="model.source",
            hint=f"it has {known_architectures(version)}",
            unsupported=True,
        )
    if not row.writable(version):
        writable = [n for n, r in trtllm_models().items() if r.writable(version)]
        return Problem(
            code="trtllm.no-writer",
            message=f"lmi-build does not write checkpoints of `{name}` for TensorRT-LLM"
            f" {version}",
            path="model.source",
            hint="let NVIDIA's converter do it in the container:"
            f" `{value_at(row.converter, version)}`; lmi-build writes"
            f" {', '.join(sorted(writable))}",
            unsupported=True,
        )
    return None


def split_problems(
    model: SourceModel, mapping: Mapping2D, version: str
) -> Iterator[Problem]:
    """What the numbers of ranks do not divide."""
    geometry, tp = model.geometry, mapping.tp
    sizes = {
        "attention heads": geometry.num_attention_heads,
        "intermediate size": geometry.intermediate_size,
    }
    if model.parallel_embedding:
        sizes["vocabulary"] = geometry.vocab_size
    for what, size in sizes.items():
        if size % tp:
            yield _indivisible(what, size, tp, sizes)
    keys = geometry.num_key_value_heads
    if max(keys, tp) % min(keys, tp):
        yield _indivisible("key-value heads", keys, tp, {**sizes, "": keys})
    yield from _stage_problems(model, mapping, version)


def _layout_problems(
    model: SourceModel, mapping: Mapping2D, algorithm: str, group: int
) -> Iterator[Problem]:
    """What no layout of codes can say; all blocks are alike."""
    if model.num_experts and algorithm not in EXPERT_ALGORITHMS:
        yield Problem(
            code="trtllm.coded-experts",
            message=f"experts of `{model.row.name}` cannot be {algorithm}",
            path="quantize.method",
            hint="set `method: int8` or `method: none`",
            unsupported=True,
        )
        return
    if not group:
        return
    for linear in layer_linears(model, "", 0, mapping.tp, 0):
        if linear.num_inputs % group:
            yield Problem(
                code="trtllm.layout",
                message=f"`{linear.cuts[0].module}` has {linear.num_inputs} inputs on"
                f" each of {mapping.tp} ranks, which groups of {group} do not divide",
                path=TENSOR_PATH,
                hint="lower tensor_parallel_size, or choose a smaller group_size",
            )


def _indivisible(what: str, size: int, tp: int, sizes: Mapping[str, int]) -> Problem:
    fits = [n for n in range(1, tp) if all(s % n == 0 for s in sizes.values())]
    return Problem(
        code="trtllm.tensor-parallel",
        message=f"tensor_parallel_size {tp} does not divide the model's {what}: {size}",
        path=TENSOR_PATH,
        hint=f"set it to {fits[-1]}" if fits else "set it to 1",
    )


def _stage_problems(
    model: SourceModel, mapping: Mapping2D, version: str
) -> Iterator[Problem]:
    pp, layers = mapping.pp, model.geometry.num_layers
    if pp == 1:
        return
    if model.shared_head or not is_since(version, model.row.pipeline):
        since = "" if model.shared_head else model.row.pipeline
        yield Problem(
            code="trtllm.pipeline-parallel",
            message=f"TensorRT-LLM {version} has no pipeline stages for"
            f" `{model.row.name}`" + (f"; they came with {since}" if since else ""),
            path=PIPELINE_PATH,
            hint="set it to 1, and tensor_parallel_size to the number of devices",
            unsupported=True,
        )
    elif layers % pp:
        fits = max(n for n in range(1, pp) if layers % n == 0)
        yield Problem(
            code="trtllm.pipeline-parallel",
            message=f"pipeline_parallel_size {pp} does not divide the model's"
            f" {layers} layers; TensorRT-LLM would leave some out",
            path=PIPELINE_PATH,
            hint=f"set it to {fits}",
        )


def _class_problems(
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


def _bias_problems(model: SourceModel) -> Iterator[Problem]:
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
