"""The backend `tensorrt-llm`, as the planner knows it: without its toolchain."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.algorithms import (
    Algorithm,
    algorithm_problems,
    choose,
)
from lmi_build.backends.trtllm.blockers import engine_blocker
from lmi_build.backends.trtllm.bounds import (
    EngineBounds,
    bounds_problems,
    explain,
    lower_bounds,
)
from lmi_build.backends.trtllm.checkpoint_checks import checkpoint_problems
from lmi_build.backends.trtllm.checkpoint_codes import float_weights
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.checkpoint_worker import checkpoint_params
from lmi_build.backends.trtllm.hf_quantized import ENTRY as HF_ENTRY
from lmi_build.backends.trtllm.hf_quantized import SALT as HF_SALT
from lmi_build.backends.trtllm.hf_quantized import (
    hf_quantized_params,
    hf_quantized_problems,
)
from lmi_build.backends.trtllm.layout import artifact_layout, layout_problems
from lmi_build.backends.trtllm.lowering import engine_needs, lower_engine, terms_of
from lmi_build.backends.trtllm.models import known_architectures, trtllm_models
from lmi_build.backends.trtllm.options import option_problems
from lmi_build.backends.trtllm.serving_keys import (
    serving_problems,
    serving_properties,
)
from lmi_build.backends.trtllm.target import (
    CHECKPOINT,
    ENGINE,
    HF_QUANTIZED,
    Target,
    find_target,
    placement,
    serve_option_problems,
    target_problems,
)
from lmi_build.catalog.images import image_uri
from lmi_build.errors import Problem
from lmi_build.spi import BackendStage, Proof, ProviderInfo, Serving
from lmi_build.values.model import DTYPE_BITS
from lmi_build.values.quant import PACKINGS
from lmi_build.values.stage import Estimate, Note

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.bounds import Terms
    from lmi_build.backends.trtllm.layout import Placement
    from lmi_build.backends.trtllm.lowering import EnginePlan
    from lmi_build.digest import JSONValue
    from lmi_build.spi import Host, Params
    from lmi_build.values.model import ModelFacts, TensorFact
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec, Recipe

CHECKPOINT_ENTRY = "lmi_build.backends.trtllm.checkpoint_worker:run"
ENGINE_ENTRY = "lmi_build.backends.trtllm.engine_worker:run"
REHEARSAL_ENTRY = "lmi_build.backends.trtllm.rehearsal:run"
PROOF_ENTRY = "lmi_build.verify.trtllm:run"
# Bumped when a worker writes other bytes for the same parameters.
CHECKPOINT_SALT = 1
ENGINE_SALT = 1
_REGION = "us-east-1"
# Methods that leave activations alone, and so have a choice of formats.
_WEIGHT_ONLY = frozenset({"rtn", "gptq", "awq", "int8"})
_NGC = "nvcr.io/nvidia/tensorrt-llm/release"
_CHECKPOINT_TOOLS = ("numpy", "safetensors", "torch")
_DTYPES = ("float16", "bfloat16", "float32")
# PyTorch, loaded and idle, with the widest tensor of a checkpoint twice.
_BASE_RAM_BYTES = 400 << 20
# What the PyTorch backend packs into one pass unless it is told otherwise.
_USUAL_NUM_TOKENS = 8192


class TrtllmBackend:
    """TensorRT-LLM: engines, their checkpoints, and folders for its PyTorch backend."""

    info = ProviderInfo(
        name="tensorrt-llm",
        summary="TensorRT-LLM engines and checkpoints for LMI's containers",
        distributions=_CHECKPOINT_TOOLS,
        salt=ENGINE_SALT,
        entry=ENGINE_ENTRY,
        further_entries=(CHECKPOINT_ENTRY, REHEARSAL_ENTRY, HF_ENTRY, PROOF_ENTRY),
        targets=("instances with NVIDIA GPUs",),
        packings=PACKINGS,
        modules=("numpy", "safetensors", "torch"),
    )

    def quantization(self, recipe: Recipe, model: ModelFacts) -> QuantSpec:
        """
        Scales in the type that the checkpoint will hold them in.

        AutoGPTQ and AutoAWQ have float16 scales only, and TensorRT-LLM wants those of
        a bfloat16 model in bfloat16: the quantizer rounds them once, and its search
        knows the rounded ones.
        """
        spec = recipe.quantize
        open_format = (
            spec.format == "auto"
            and spec.method in _WEIGHT_ONLY
            and spec.provider == "builtin"
        )
        row = trtllm_models().get(model.geometry.architecture)
        if not open_format or row is None or _dtype(model) == "float16":
            return spec
        if any(True for _ in target_problems(recipe.compile)):
            return spec
        target = find_target(recipe.compile)
        ours = row.writable(target.release.trtllm) or target.kind == HF_QUANTIZED
        return replace(spec, format="compressed-tensors") if ours else spec

    def check(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme
    ) -> Iterator[Problem]:
        """Yield every reason why this cannot be built, by dotted recipe path."""
        spec = recipe.compile
        problems = [
            *target_problems(spec),
            *serve_option_problems(recipe.serve.options),
        ]
        if recipe.serve.rolling_batch != "auto":
            problems.append(_rolling_batch(recipe.serve.rolling_batch))
        yield from problems
        if problems:
            return
        target = find_target(spec)
        if target.kind == HF_QUANTIZED:
            yield from _hf_problems(recipe, model, scheme, target)
        else:
            yield from _engine_problems(recipe, model, scheme, target)

    def stages(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> tuple[BackendStage, ...]:
        """Checkpoint and engine, or one of them, or the folder of the other backend."""
        target = find_target(recipe.compile)
        if target.kind == HF_QUANTIZED:
            return (_hf_stage(model, scheme),)
        algorithm = _algorithm(model, scheme, target)
        made = []
        if algorithm.writer == "ours":
            made.append(_checkpoint_stage(recipe, model, algorithm, target))
        if target.kind == ENGINE:
            made.append(_engine_stage(recipe, model, algorithm, target, host))
        return tuple(made)

    def serving(
        self,
        recipe: Recipe,
        model: ModelFacts,
        scheme: QuantScheme,
        host: Host,
        versions: Mapping[str, str],
    ) -> Serving:
        """What the package needs; nothing of it hangs on what is installed here."""
        del versions
        target = find_target(recipe.compile)
        place = _placement(recipe, model, scheme, target)
        layout = artifact_layout(target.release, place)
        served = target.kind != CHECKPOINT
        return Serving(
            handler="",
            requirements=(),
            properties=(
                serving_properties(target.release, place, dtype=_dtype(model))
                if served
                else {}
            ),
            engine_dir=layout.engine_dir,
            settings={},
            tokenizer_dir=layout.tokenizer_dir,
            model_files=layout.model_files,
            files=layout.files,
            compatibility=_compatibility(recipe, target),
            bounds={"max_num_tokens": place.bounds.max_num_tokens},
            rehearsal=host.rehearse and target.kind == ENGINE,
        )

    def proof(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> Proof:
        """Its files, what the container will do with them, and its numbers."""
        target = find_target(recipe.compile)
        params: dict[str, JSONValue] = {
            "release": target.release.name,
            "kind": target.kind,
            "rehearsal": host.rehearse and target.kind == ENGINE,
            "dtype": _dtype(model),
            "tensor_parallel_size": recipe.compile.tensor_parallel_size,
            "pipeline_parallel_size": recipe.compile.pipeline_parallel_size,
            "compute_capability": target.instance.compute_capability,
        }
        if target.kind != HF_QUANTIZED:
            algorithm = _algorithm(model, scheme, target)
            params["quant_algo"] = algorithm.quant_algo
            params["kv_cache_quant_algo"] = algorithm.kv_cache_quant_algo
        return Proof(
            distributions=(),
            entry=PROOF_ENTRY,
            params=params,
            weights=recipe.quantize.method != "none",
        )


def _rolling_batch(value: str) -> Problem:
    return Problem(
        code="serve.rolling-batch",
        message=f"`rolling_batch` is `{value}`; which scheduler loads an artifact"
        " without compiling it is the release's to say",
        path="serve.rolling_batch",
        hint="write `rolling_batch: auto`, or remove the line",
    )


def _engine_problems(
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
    problems = [
        *algorithm_problems(scheme, row, release, target.instance, dtype=_dtype(model))
    ]
    yield from problems
    yield from option_problems(spec.options, release.flags)
    if problems:
        return
    algorithm = choose(scheme, row, release)
    terms = terms_of(release, row, algorithm, spec.options)
    yield from bounds_problems(recipe.bounds, terms)
    if algorithm.writer == "ours":
        yield from _scale_problems(recipe, model, scheme, algorithm)
        yield from checkpoint_problems(
            model.geometry,
            model.config,
            _float_shapes(model),
            version=release.trtllm,
            dtype=_dtype(model),
            mapping=_mapping(recipe),
            quant_algo=algorithm.quant_algo,
            group_size=algorithm.group_size,
        )
    elif target.kind == CHECKPOINT:
        yield Problem(
            code="trtllm.no-writer",
            message=f"the checkpoint of `{row.name}` is made by NVIDIA's converter on"
            " the machine with the GPU; lmi-build cannot stop there",
            path="compile.artifact",
            hint="write `artifact: engine`",
            unsupported=True,
        )
    place = _placement(recipe, model, scheme, target)
    yield from layout_problems(release, place)
    if target.kind == ENGINE:
        yield from serving_problems(release, place)


def _scale_problems(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, algorithm: Algorithm
) -> Iterator[Problem]:
    """Scales on disk have more digits than the checkpoint has room for."""
    in_model_dtype = algorithm.quant_algo in {"W4A16_AWQ", "W8A16", "W4A16"}
    dtype = _dtype(model)
    if not in_model_dtype or dtype != "bfloat16" or scheme.scale_dtype != "float16":
        return
    came_so = recipe.quantize.method == "none"
    yield Problem(
        code="trtllm.scale-dtype",
        message="scales are float16, a checkpoint of a bfloat16 model holds them in"
        " bfloat16, with three digits fewer",
        path="model.dtype" if came_so else "quantize.format",
        hint="write `model.dtype: float16`"
        if came_so
        else "write `format: compressed-tensors`, or `model.dtype: float16`",
    )


def _hf_problems(
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
    place = _placement(recipe, model, scheme, target)
    yield from layout_problems(release, place)
    yield from serving_problems(release, place)


def _algorithm(model: ModelFacts, scheme: QuantScheme, target: Target) -> Algorithm:
    row = trtllm_models()[model.geometry.architecture]
    return choose(scheme, row, target.release)


def _mapping(recipe: Recipe) -> Mapping2D:
    spec = recipe.compile
    return Mapping2D(tp=spec.tensor_parallel_size, pp=spec.pipeline_parallel_size)


def _dtype(model: ModelFacts) -> str:
    """Of what is not quantized; TensorRT-LLM knows three."""
    return model.dtype if model.dtype in _DTYPES else "float16"


def _float_shapes(model: ModelFacts) -> dict[str, tuple[int, ...]]:
    """
    Shape of every tensor of the float model; empty where the source came quantized.

    Names of codes and scales would be taken for surplus tensors.
    """
    if model.config.get("quantization_config") is not None:
        return {}
    return {tensor.name: tensor.shape for tensor in model.tensors}


def _engine_bounds(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> EngineBounds:
    if target.kind != HF_QUANTIZED:
        return lower_bounds(recipe.bounds, _terms(recipe, model, scheme, target))
    bounds = recipe.bounds
    whole = bounds.max_batch_size * bounds.max_seq_len
    derived = max(bounds.max_input_len, min(_USUAL_NUM_TOKENS, whole))
    num_tokens = bounds.max_num_tokens or derived
    return EngineBounds(
        max_input_len=bounds.max_input_len,
        max_output_len=bounds.max_output_len,
        max_seq_len=bounds.max_seq_len,
        max_batch_size=bounds.max_batch_size,
        max_num_tokens=num_tokens,
        opt_num_tokens=None,
        max_beam_width=bounds.max_beam_width,
        paged_context_fmha=False,
        chunked_context=num_tokens < bounds.max_input_len,
    )


def _terms(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Terms:
    row = trtllm_models()[model.geometry.architecture]
    algorithm = choose(scheme, row, target.release)
    return terms_of(target.release, row, algorithm, recipe.compile.options)


def _placement(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Placement:
    bounds = _engine_bounds(recipe, model, scheme, target)
    return placement(target, recipe.compile, bounds, recipe.serve.options)


def _compatibility(recipe: Recipe, target: Target) -> Params:
    """What the artifact is bound to."""
    release, machine = target.release, target.instance
    found: dict[str, JSONValue] = {
        "architecture": "x86_64",
        "device": machine.device,
        "compute_capability": machine.compute_capability,
        "instance_type": machine.name,
        "kind": target.kind,
        "release": release.name,
        "trtllm": release.trtllm,
        "num_ranks": recipe.compile.tensor_parallel_size
        * recipe.compile.pipeline_parallel_size,
    }
    if target.kind == ENGINE:
        found["tensorrt"] = release.tensorrt
    return found


def _checkpoint_stage(
    recipe: Recipe, model: ModelFacts, algorithm: Algorithm, target: Target
) -> BackendStage:
    capability = target.instance.compute_capability
    params = {
        **checkpoint_params(target.release.trtllm, _dtype(model), _mapping(recipe)),
        "algorithm": algorithm.to_json(),
        # One checkpoint serves every GPU, except where its kernels want another order.
        "compute_capability": (
            capability if float_weights(algorithm.quant_algo, capability) else ""
        ),
    }
    return BackendStage(
        kind="checkpoint",
        entry=CHECKPOINT_ENTRY,
        salt=CHECKPOINT_SALT,
        params=params,
        inputs={"checkpoint": "weights"},
        distributions=_CHECKPOINT_TOOLS,
        estimate=Estimate(
            disk_bytes=_checkpoint_bytes(model, algorithm),
            ram_bytes=_BASE_RAM_BYTES + 2 * _widest_bytes(model),
        ),
        platform="any",
    )


def _engine_stage(
    recipe: Recipe,
    model: ModelFacts,
    algorithm: Algorithm,
    target: Target,
    host: Host,
) -> BackendStage:
    plan = _engine_plan(recipe, model, algorithm, target)
    needs = engine_needs(
        _checkpoint_bytes(model, algorithm),
        plan.num_ranks,
        writes_checkpoint=plan.conversion is not None,
    )
    terms = terms_of(
        target.release,
        trtllm_models()[model.geometry.architecture],
        algorithm,
        recipe.compile.options,
    )
    notes = tuple(
        Note(level="info", code="compile.derived", message=line)
        for line in explain(recipe.bounds, terms)
    )
    ours = algorithm.writer == "ours"
    capability = target.instance.compute_capability
    platform = f"linux-x86_64-sm{capability.replace('.', '')}"
    return BackendStage(
        kind="compile",
        entry=REHEARSAL_ENTRY if host.rehearse else ENGINE_ENTRY,
        salt=ENGINE_SALT,
        params=plan.to_json(),
        inputs={"checkpoint": "checkpoint"} if ours else {"source": algorithm.source},
        tools=_release_tools(target),
        estimate=Estimate(
            disk_bytes=needs["disk_bytes"], ram_bytes=needs["host_bytes"]
        ),
        settings={
            "runner": host.runner,
            "image": _image(target, host),
            "examples": host.places.get("trtllm-examples", ""),
            "timing_cache": f"{host.places['cache']}/trtllm-timing"
            if "cache" in host.places
            else "",
            "target": target.instance.name,
            **needs,
        },
        blocker=None if host.rehearse else engine_blocker(plan, target, needs, host),
        notes=notes,
        # A rehearsal must never be taken for the engine: it has another key.
        platform=f"{platform}-rehearsal" if host.rehearse else platform,
    )


def _engine_plan(
    recipe: Recipe, model: ModelFacts, algorithm: Algorithm, target: Target
) -> EnginePlan:
    return lower_engine(
        recipe.bounds,
        model.geometry,
        model=trtllm_models()[model.geometry.architecture],
        algorithm=algorithm,
        release=target.release,
        instance=target.instance,
        dtype=_dtype(model),
        spec=recipe.compile,
    )


def _hf_stage(model: ModelFacts, scheme: QuantScheme) -> BackendStage:
    params = hf_quantized_params(scheme)
    size = _checkpoint_bytes(model, None, scheme=scheme)
    return BackendStage(
        kind="checkpoint",
        entry=HF_ENTRY,
        salt=HF_SALT,
        params=params,
        inputs={"checkpoint": "weights"},
        distributions=_CHECKPOINT_TOOLS,
        estimate=Estimate(
            disk_bytes=size, ram_bytes=_BASE_RAM_BYTES + 2 * _widest_bytes(model)
        ),
        platform="any",
    )


def _release_tools(target: Target) -> dict[str, str]:
    """Versions that the release brings, whatever is installed here."""
    release = target.release
    found = {"tensorrt-llm": release.trtllm}
    if release.tensorrt:
        found["tensorrt"] = release.tensorrt
    return found


def _image(target: Target, host: Host) -> str:
    """Image of a container: the user's, else the release's own."""
    given = host.places.get("image")
    if given:
        return given
    release = target.release
    if release.tag:
        return image_uri(release.tag, _REGION)
    return f"{_NGC}:{release.trtllm}"


def _widest_bytes(model: ModelFacts) -> int:
    return 4 * max((tensor.num_elements for tensor in model.tensors), default=0)


def _checkpoint_bytes(
    model: ModelFacts, algorithm: Algorithm | None, *, scheme: QuantScheme | None = None
) -> int:
    """
    Bytes of a checkpoint, from the headers of its source.

    A source that came quantized keeps its size; of a float one the linears of blocks
    shrink to what the algorithm stores.
    """
    wide = 4 if _dtype(model) == "float32" else 2
    if model.config.get("quantization_config") is not None:
        return sum(
            tensor.num_elements * DTYPE_BITS.get(tensor.dtype, 8) // 8
            for tensor in model.tensors
        )
    bits = _weight_bits(algorithm, scheme) or 8 * wide
    return sum(
        math.ceil(tensor.num_elements * (bits / 8 if _in_block(tensor) else wide))
        for tensor in model.tensors
    )


def _weight_bits(algorithm: Algorithm | None, scheme: QuantScheme | None) -> float:
    """Bits of a quantized weight with its share of scales; 0 for float."""
    if scheme is not None:
        group, bits = scheme.group_size, scheme.weight_bits
        if scheme.packing == "none":
            return 0
        return bits + (16 / group if group > 0 else 0)
    if algorithm is None or not algorithm.quant_algo:
        return 0
    bits = 4 if algorithm.quant_algo.startswith("W4") else 8
    return bits + (16 / algorithm.group_size if algorithm.group_size else 0)


def _in_block(tensor: TensorFact) -> bool:
    """A matrix of a decoder block: those are the ones that are quantized."""
    return len(tensor.shape) > 1 and any(
        part.isdigit() for part in tensor.name.split(".")
    )


PROVIDER = TrtllmBackend()
