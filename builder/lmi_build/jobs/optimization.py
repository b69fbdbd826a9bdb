"""
The same wish as an inference optimization job, where LMI's own tools can fulfil it.

`CreateOptimizationJob` runs the scripts in an LMI image on a machine that SageMaker
chooses: `sm_neo_dispatcher.py` in serving/docker/partition of djl-serving takes
TensorRT-LLM images to compilation (which quantizes on the way, by `option.quantize`),
Neuron images to compilation, and LMI's general images to quantization by AWQ or FP8.
They are told by variables. Read, not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.images import REPOSITORY, image_uri, regions
from lmi_build.catalog.instances import instances, use_problem
from lmi_build.catalog.neuron_releases import neuron_releases, newest_neuron
from lmi_build.catalog.releases import newest, releases
from lmi_build.jobs.finish import job_name
from lmi_build.recipe.forms import source_kind
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.catalog.releases import Release
    from lmi_build.jobs.union import Work
    from lmi_build.values.recipe import Recipe

OPERATION = "CreateOptimizationJob"
_BACKENDS = ("tensorrt-llm", "neuronx")
# What the toolkit in TensorRT-LLM images does by `option.quantize`.
_QUANTIZE = {"awq": "awq", "smoothquant": "smoothquant", "fp8": "fp8"}
_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
_MAX_SECONDS = 36_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """
    An optimization job for one recipe, or why there is none.

    Args:
        artifact: Name of the recipe.
        document: The request; None where there is none.
        reasons: Why not; empty with a request.
        differences: What such a job does otherwise than the recipe says.
    """

    artifact: str
    document: Mapping[str, Any] | None
    reasons: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


def optimization_jobs(work: Work, role_arn: str) -> tuple[Alternative, ...]:
    """
    An alternative for each recipe.

    Args:
        work: The recipes.
        role_arn: Role that the jobs run as.
    """
    return tuple(_alternative(r, work, role_arn) for r in work.recipes.values())


def _alternative(recipe: Recipe, work: Work, role_arn: str) -> Alternative:
    reasons = tuple(_refusals(recipe, work.region))
    if reasons:
        return Alternative(artifact=recipe.name, document=None, reasons=reasons)
    environment = _environment(recipe, work)
    release = _release(recipe)
    image = image_uri(
        release.tag,
        work.region,
        repository=getattr(release, "repository", REPOSITORY),
    )
    config = {"Image": image, "OverrideEnvironment": environment}
    spec = work.spec
    key = spec.output_kms_key_id
    body: dict[str, Any] = {
        "RoleArn": role_arn,
        "ModelSource": {"S3": {"S3Uri": recipe.model.source}},
        "DeploymentInstanceType": recipe.compile.target,
        "OptimizationConfigs": [{"ModelCompilationConfig": config}],
        "OutputConfig": {
            "S3OutputLocation": f"{work.store}/optimized/{recipe.name}",
            **({"KmsKeyId": key} if key else {}),
        },
        "StoppingCondition": {
            "MaxRuntimeInSeconds": spec.max_runtime_seconds or _MAX_SECONDS
        },
    }
    if spec.tags:
        body["Tags"] = [{"Key": k, "Value": v} for k, v in sorted(spec.tags.items())]
    if spec.subnets:
        body["VpcConfig"] = {
            "SecurityGroupIds": list(spec.security_group_ids),
            "Subnets": list(spec.subnets),
        }
    name = job_name(spec.name_prefix or recipe.name, "optimize", body)
    return Alternative(
        artifact=recipe.name,
        document={"OptimizationJobName": name, **body},
        differences=tuple(_differences(recipe)),
    )


def _release(recipe: Recipe) -> Release | NeuronRelease:
    """The row of the catalogue that compiles."""
    spec = recipe.compile
    if spec.backend == "neuronx":
        return neuron_releases()[spec.release] if spec.release else newest_neuron()
    return releases()[spec.release] if spec.release else newest()


def _refusals(recipe: Recipe, region: str) -> Iterator[str]:
    """Why no optimization job does what a recipe says."""
    spec, method = recipe.compile, recipe.quantize.method
    if spec.backend not in _BACKENDS:
        yield (
            f"it compiles with {join_words(_BACKENDS)}, and the recipe says"
            f" `{spec.backend}`"
        )
        return
    if source_kind(recipe.model.source) != "s3":
        yield f"it takes models from S3 alone, and `{recipe.model.source}` is elsewhere"
    if spec.backend == "neuronx" and method != "none":
        yield f"for Neuron it quantizes nothing, and the recipe says `{method}`"
    elif method not in {"none", *_QUANTIZE}:
        yield (
            f"LMI's tools quantize by {join_words(list(_QUANTIZE))}, and the recipe"
            f" says `{method}`"
        )
    if spec.backend == "tensorrt-llm" and spec.artifact not in {"auto", "engine"}:
        yield f"it makes engines, and the recipe says `{spec.artifact}`"
    if spec.target in instances():
        problem = use_problem(spec.target, "optimization", path="compile.target")
        if problem is not None:
            yield problem.message
    else:
        yield f"`{spec.target}` is no instance"
    release = _release(recipe)
    repository = getattr(release, "repository", REPOSITORY)
    if not release.tag:
        yield f"no image of `{release.name}` was published"
    elif region not in regions(release.tag, repository=repository):
        yield f"region `{region}` has no image of `{release.name}`"


def _environment(recipe: Recipe, work: Work) -> dict[str, str]:
    """The recipe in the variables of LMI."""
    spec, bounds = recipe.compile, recipe.bounds
    dtype = work.facts[recipe.name].dtype
    found = {
        "OPTION_TENSOR_PARALLEL_DEGREE": str(spec.tensor_parallel_size),
        "OPTION_MAX_ROLLING_BATCH_SIZE": str(bounds.max_batch_size),
        "OPTION_DTYPE": _DTYPES.get(dtype, "auto"),
    }
    if spec.backend == "neuronx":
        return {**found, "OPTION_N_POSITIONS": str(bounds.max_seq_len)}
    found |= {
        "OPTION_ROLLING_BATCH": "trtllm",
        "OPTION_MAX_INPUT_LEN": str(bounds.max_input_len),
        "OPTION_MAX_OUTPUT_LEN": str(bounds.max_output_len),
    }
    if bounds.max_num_tokens:
        found["OPTION_MAX_NUM_TOKENS"] = str(bounds.max_num_tokens)
    if recipe.quantize.method != "none":
        found["OPTION_QUANTIZE"] = _QUANTIZE[recipe.quantize.method]
    return found


def _differences(recipe: Recipe) -> Iterator[str]:
    """What such a job leaves out."""
    if recipe.quantize.method != "none":
        yield (
            "LMI quantizes with its own settings and its own calibration data; those of"
            " the recipe, and what it ignores, are not passed on"
        )
    yield "nothing is verified, and no gate is held"
    yield "the result is no artifact of this project and shares no stage with others"
