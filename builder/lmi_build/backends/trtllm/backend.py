"""The backend `tensorrt-llm`, as the planner knows it: without its toolchain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.diagnosis import diagnose
from lmi_build.backends.trtllm.hf_quantized import ENTRY as HF_ENTRY
from lmi_build.backends.trtllm.layout import artifact_layout
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.backends.trtllm.recipe_checks import (
    engine_recipe_problems,
    hf_recipe_problems,
    rolling_batch_problem,
)
from lmi_build.backends.trtllm.resolved import (
    algorithm_of,
    float_dtype,
    placement_of,
)
from lmi_build.backends.trtllm.serving_keys import (
    serving_properties,
)
from lmi_build.backends.trtllm.stage_plans import (
    CHECKPOINT_ENTRY,
    CHECKPOINT_TOOLS,
    ENGINE_ENTRY,
    ENGINE_SALT,
    REHEARSAL_ENTRY,
    checkpoint_stage,
    engine_stage,
    hf_stage,
)
from lmi_build.backends.trtllm.target import (
    CHECKPOINT,
    ENGINE,
    HF_QUANTIZED,
    Target,
    find_target,
    serve_option_problems,
    target_problems,
)
from lmi_build.spi import BackendStage, Finding, Proof, ProviderInfo, Serving
from lmi_build.values.quant import PACKINGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.layout import Layout
    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.spi import Host, Params
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec, Recipe

PROOF_ENTRY = "lmi_build.verify.trtllm:run"
# Methods that leave activations alone, and so have a choice of formats.
_WEIGHT_ONLY = frozenset({"rtn", "gptq", "awq", "int8"})


class TrtllmBackend:
    """TensorRT-LLM: engines, their checkpoints, and folders for its PyTorch backend."""

    info = ProviderInfo(
        name="tensorrt-llm",
        summary="TensorRT-LLM engines and checkpoints for LMI's containers",
        distributions=CHECKPOINT_TOOLS,
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
        if not open_format or row is None or float_dtype(model) == "float16":
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
            problems.append(rolling_batch_problem(recipe.serve.rolling_batch))
        yield from problems
        if problems:
            return
        target = find_target(spec)
        if target.kind == HF_QUANTIZED:
            yield from hf_recipe_problems(recipe, model, scheme, target)
        else:
            yield from engine_recipe_problems(recipe, model, scheme, target)

    def stages(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> tuple[BackendStage, ...]:
        """Checkpoint and engine, or one of them, or the folder of the other backend."""
        target = find_target(recipe.compile)
        if target.kind == HF_QUANTIZED:
            return (hf_stage(model, scheme),)
        algorithm = algorithm_of(model, scheme, target)
        made = []
        if algorithm.writer == "ours":
            made.append(checkpoint_stage(recipe, model, algorithm, target))
        if target.kind == ENGINE:
            made.append(engine_stage(recipe, model, algorithm, target, host))
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
        place = placement_of(recipe, model, scheme, target)
        layout = self._layout(recipe, model, scheme, target)
        served = target.kind != CHECKPOINT
        return Serving(
            handler="",
            requirements=(),
            properties=(
                serving_properties(target.release, place, dtype=float_dtype(model))
                if served
                else {}
            ),
            engine_dir=layout.engine_dir,
            settings={},
            tokenizer_dir=layout.tokenizer_dir,
            tokenizer_class=_tokenizer_class(layout),
            model_files=layout.model_files,
            files=layout.files,
            compatibility=_compatibility(recipe, target),
            bounds={"max_num_tokens": place.bounds.max_num_tokens},
            rehearsal=host.rehearse and target.kind == ENGINE,
        )

    def _layout(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
    ) -> Layout:
        """Which file lies where."""
        place = placement_of(recipe, model, scheme, target)
        return artifact_layout(target.release, place)

    def proof(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> Proof:
        """Its files, what the container will do with them, and its numbers."""
        target = find_target(recipe.compile)
        params: dict[str, JSONValue] = {
            "release": target.release.name,
            "kind": target.kind,
            "rehearsal": host.rehearse and target.kind == ENGINE,
            "dtype": float_dtype(model),
            "parts": list(self._layout(recipe, model, scheme, target).parts),
            "tensor_parallel_size": recipe.compile.tensor_parallel_size,
            "pipeline_parallel_size": recipe.compile.pipeline_parallel_size,
            "compute_capability": target.instance.compute_capability,
        }
        if target.kind != HF_QUANTIZED:
            algorithm = algorithm_of(model, scheme, target)
            params["quant_algo"] = algorithm.quant_algo
            params["kv_cache_quant_algo"] = algorithm.kv_cache_quant_algo
        return Proof(
            distributions=(),
            entry=PROOF_ENTRY,
            params=params,
            weights=recipe.quantize.method != "none",
        )

    def diagnose(self, host: Host) -> Iterator[Finding]:
        """GPUs, and the TensorRT-LLM beside this Python."""
        yield from diagnose(host)


def _tokenizer_class(layout: Layout) -> str:
    """An engine's `config.json` names no class; the model's own does."""
    beside_engine = layout.engine_dir == layout.tokenizer_dir and layout.ranks
    return "needed" if beside_engine else "known"


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


PROVIDER = TrtllmBackend()
