"""Every reason why a recipe cannot be built for TensorRT-LLM, by dotted path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.algorithms import (
    Algorithm,
    algorithm_problems,
    choose,
)
from lmi_build.backends.trtllm.bounds import (
    bounds_problems,
)
from lmi_build.backends.trtllm.checkpoint_checks import checkpoint_problems
from lmi_build.backends.trtllm.coded_checks import Coding
from lmi_build.backends.trtllm.coded_names import coded_modules, planned_modules
from lmi_build.backends.trtllm.gptq_folder import gptq_folder_problems
from lmi_build.backends.trtllm.hf_checks import linear_faults
from lmi_build.backends.trtllm.hf_quantized import (
    hf_quantized_problems,
    quant_algo,
)
from lmi_build.backends.trtllm.layout import layout_problems
from lmi_build.backends.trtllm.lowering import terms_of
from lmi_build.backends.trtllm.models import known_architectures, trtllm_models
from lmi_build.backends.trtllm.options import option_problems
from lmi_build.backends.trtllm.resolved import (
    float_dtype,
    placement_of,
    ranks_of,
)
from lmi_build.backends.trtllm.serving_keys import (
    serving_problems,
)
from lmi_build.backends.trtllm.split_checks import split_problems
from lmi_build.backends.trtllm.target import (
    CHECKPOINT,
    ENGINE,
    Target,
    find_target,
)
from lmi_build.catalog.architectures import architectures
from lmi_build.checkpoint.formats.headers import linears_in
from lmi_build.checkpoint.formats.modelopt import METHOD
from lmi_build.errors import Problem
from lmi_build.values.quant import MODELOPT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe


def rolling_batch_problem(value: str) -> Problem:
    """Why a scheduler cannot be chosen here."""
    return Problem(
        code="serve.rolling-batch",
        message=f"`rolling_batch` is `{value}`; which scheduler loads an artifact"
        " without compiling it is the release's to say",
        path="serve.rolling_batch",
        hint="write `rolling_batch: auto`, or remove the line",
    )


def engine_recipe_problems(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Iterator[Problem]:
    """Of an engine, and of the checkpoint it is built from."""
    release, spec = target.release, recipe.compile
    row = trtllm_models().get(model.geometry.architecture)
    if row is None or not row.supported(release.trtllm):
        yield Problem(
            code="trtllm.architecture",
            message=f"TensorRT-LLM {release.trtllm} builds no engine of"
            f" `{model.geometry.architecture}`",
            path="model.source",
            hint=f"it builds {known_architectures(release.trtllm)}",
            unsupported=True,
        )
        return
    if scheme.packing == MODELOPT:
        yield Problem(
            code="compile.unsupported",
            message="the weights lie as NVIDIA's Model Optimizer leaves them, which"
            " lmi-build passes on to the PyTorch backend and puts into no checkpoint",
            path="model.source",
            hint="write `artifact: hf-quantized`, or name the float model, with the"
            " method under `quantize`",
            unsupported=True,
        )
        return
    problems = [
        *algorithm_problems(
            scheme, row, release, target.instance, dtype=float_dtype(model)
        )
    ]
    yield from problems
    yield from option_problems(spec.options, release.flags)
    if problems:
        return
    algorithm = choose(scheme, row, release)
    terms = terms_of(release, row, algorithm, spec.options)
    yield from bounds_problems(recipe.bounds, terms)
    yield from _writer_problems(recipe, model, scheme, target, algorithm)
    place = placement_of(recipe, model, scheme, target)
    yield from layout_problems(release, place)
    if target.kind == ENGINE:
        yield from serving_problems(release, place)


def _writer_problems(
    recipe: Recipe,
    model: ModelFacts,
    scheme: QuantScheme,
    target: Target,
    algorithm: Algorithm,
) -> Iterator[Problem]:
    """Of who writes the checkpoint: lmi-build, or NVIDIA's converter."""
    release = target.release
    row = trtllm_models()[model.geometry.architecture]
    if algorithm.writer == "ours":
        yield from _scale_problems(model, scheme, algorithm)
        yield from checkpoint_problems(
            model.geometry,
            model.config,
            {tensor.name: tensor.shape for tensor in model.tensors},
            version=release.trtllm,
            dtype=float_dtype(model),
            mapping=ranks_of(recipe),
            quantized=_coded(recipe, model, scheme) if _settled(model) else frozenset(),
            coding=_coding(recipe, model, scheme, algorithm),
        )
    else:
        yield from split_problems(row, model.geometry, ranks_of(recipe), release.trtllm)
        yield from _float_source_problems(model, algorithm)
    if algorithm.quant_algo == "W4A16_GPTQ":
        yield from _gptq_problems(recipe, model, scheme, target)
    if algorithm.writer == "nvidia" and target.kind == CHECKPOINT:
        yield Problem(
            code="trtllm.no-writer",
            message=f"the checkpoint of `{row.name}` is made by NVIDIA's converter on"
            " the machine with the GPU; lmi-build cannot stop there",
            path="compile.artifact",
            hint="write `artifact: engine`",
            unsupported=True,
        )


def _float_source_problems(
    model: ModelFacts, algorithm: Algorithm
) -> Iterator[Problem]:
    """NVIDIA's converter would read codes as if they were the float weights."""
    if not algorithm.quant_algo or algorithm.source != "fetch" or not _settled(model):
        return
    yield Problem(
        code="compile.unsupported",
        message=f"NVIDIA's converter of `{model.geometry.architecture}` makes"
        f" `{algorithm.quant_algo}` of float weights, and this model came quantized",
        path="model.source",
        hint="name the float model, with the method under `quantize`",
        unsupported=True,
    )


def _gptq_problems(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Iterator[Problem]:
    """
    What NVIDIA's converter takes for granted in a GPTQ folder.

    Our quantizer writes one file; of a folder that came quantized the headers say.
    """
    came_so = recipe.quantize.method == "none"
    files = {tensor.file for tensor in model.tensors} if came_so else {"model"}
    tensors = {tensor.name for tensor in model.tensors}
    for message in gptq_folder_problems(
        scheme,
        files=files,
        tensors=tensors,
        trtllm=target.release.trtllm,
        pipeline_parallel_size=recipe.compile.pipeline_parallel_size,
    ):
        yield Problem(
            code="trtllm.gptq-folder",
            message=f"NVIDIA's converter of `{model.geometry.architecture}` cannot take"
            f" these weights: {message}",
            path="model.source" if came_so else "quantize.method",
            hint="set `quantize.method: none` on the float model, or `method: int8`",
            unsupported=True,
        )


def _scale_problems(
    model: ModelFacts, scheme: QuantScheme, algorithm: Algorithm
) -> Iterator[Problem]:
    """Scales on disk have more digits than the checkpoint has room for."""
    in_model_dtype = algorithm.quant_algo in {"W4A16_AWQ", "W8A16", "W4A16"}
    dtype = float_dtype(model)
    if not in_model_dtype or dtype != "bfloat16" or scheme.scale_dtype != "float16":
        return
    yield Problem(
        code="trtllm.scale-dtype",
        message="scales are float16, a checkpoint of a bfloat16 model holds them in"
        " bfloat16, with three digits fewer",
        path="quantize.format",
        hint="write `format: compressed-tensors`, or `model.dtype: float16`",
    )


def hf_recipe_problems(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Iterator[Problem]:
    """Of a folder for the PyTorch backend, which compiles nothing."""
    spec, release = recipe.compile, target.release
    for name in spec.options:
        yield Problem(
            code="compile.unknown-option",
            message=f"`{name}` is an option of `trtllm-build`; the PyTorch backend"
            " compiles nothing",
            path=f"compile.options.{name}",
            hint="remove the line",
        )
    yield from hf_quantized_problems(
        scheme,
        model,
        trtllm=release.trtllm,
        capability=target.instance.compute_capability,
        tensor_parallel_size=spec.tensor_parallel_size,
    )
    yield from _hf_linear_problems(recipe, model, scheme)
    place = placement_of(recipe, model, scheme, target)
    yield from layout_problems(release, place)
    yield from serving_problems(release, place)


def _hf_linear_problems(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme
) -> Iterator[Problem]:
    """What the worker would find in the quantized weights, before they are made."""
    algo = quant_algo(scheme)
    known = model.geometry.architecture in architectures()
    settled, method = _settled(model), _quant_method(model)
    if not algo or method == METHOD or not (known or settled):
        return
    shapes = {tensor.name: (tensor.dtype, tensor.shape) for tensor in model.tensors}
    if settled:
        linears = {
            linear.name: (linear.num_outputs, linear.num_inputs)
            for linear in linears_in(shapes, scheme)
        }
    else:
        modules = planned_modules(shapes, model.geometry, recipe.quantize.ignore)
        linears = {
            name: (shape[0], shape[1])
            for name in sorted(modules)
            for _, shape in [shapes[f"{name}.weight"]]
        }
    weights = {x.removesuffix(".weight") for x in shapes if x.endswith(".weight")}
    for fault in linear_faults(linears, weights | set(linears), algo):
        yield Problem(
            code="compile.hf-format",
            message=fault.message,
            path="model.source" if settled else fault.path,
            hint="start from the float model" if settled else fault.hint,
            unsupported=True,
        )


def _quant_method(model: ModelFacts) -> str:
    entry = model.config.get("quantization_config")
    return str(entry.get("quant_method", "")) if isinstance(entry, Mapping) else ""


def _coding(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, algorithm: Algorithm
) -> Coding | None:
    """What the linears become; None where they stay in float."""
    if not algorithm.quant_algo:
        return None
    return Coding(
        algorithm=algorithm.quant_algo,
        group_size=algorithm.group_size,
        version=find_target(recipe.compile).release.trtllm,
        modules=_coded(recipe, model, scheme) if model.tensors else None,
        settled=_settled(model),
    )


def _coded(recipe: Recipe, model: ModelFacts, scheme: QuantScheme) -> frozenset[str]:
    """Linears that are codes when the checkpoint is written."""
    names = [tensor.name for tensor in model.tensors]
    if _settled(model):
        return coded_modules(names, scheme)
    return planned_modules(names, model.geometry, recipe.quantize.ignore)


def _settled(model: ModelFacts) -> bool:
    """Whether the model came quantized."""
    return model.config.get("quantization_config") is not None
