"""
The grammar of a recipe, as pydantic models: the one place of defaults and ranges.

Models exist only at the door: `load` turns them into the frozen values of
`values.recipe`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field

from lmi_build.recipe import aws_forms, forms
from lmi_build.recipe.job_section import JobSection
from lmi_build.recipe.methods import NoneMethod, QuantizeSection
from lmi_build.recipe.section import (
    MAX_TOKENS,
    Count,
    KmsKey,
    Region,
    Section,
    TagKey,
    TagValue,
    Tokens,
)

SCHEMA = "lmi-build/v1"
# Backends of this project; others come as plugins (entry points).
BACKENDS = ("onnxruntime", "tensorrt-llm", "neuronx", "aotinductor", "vllm")
MAX_SECONDS = 24 * 60 * 60

Seconds: TypeAlias = Annotated[int, Field(ge=1, le=MAX_SECONDS)]
VariableName: TypeAlias = Annotated[str, AfterValidator(forms.check_variable)]
VariableValue: TypeAlias = Annotated[str, AfterValidator(forms.check_variable_value)]
Account: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_owner)]
Endpoint: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_endpoint)]
Prompt: TypeAlias = Annotated[str, AfterValidator(forms.check_prompt)]


class ModelSection(Section):
    """Which model, from where."""

    source: Annotated[str, AfterValidator(forms.check_source)] = Field(
        description="`owner/name` on the hub, a folder (`./model`), an `s3://` prefix "
        "or a `.gguf` file; paths are relative to the recipe.",
        examples=["HuggingFaceTB/SmolLM2-135M-Instruct"],
    )
    revision: Annotated[str, AfterValidator(forms.check_revision)] | None = Field(
        default=None,
        description="Branch, tag or commit of a hub repository; `main` by default.",
        examples=["main"],
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="Float type of the weights; `auto` keeps what the source has.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Whether the model's own Python files may be fetched and run.",
    )


class BoundsSection(Section):
    """What one request and one batch may ask for; `max_seq_len` is their sum."""

    max_input_len: Tokens = Field(
        description="Longest prompt of one request, in tokens.", examples=[512]
    )
    max_output_len: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = Field(
        description="Most new tokens of one request; 0 for an encoder, which generates "
        "none.",
        examples=[128],
    )
    max_batch_size: Count = Field(
        default=1, description="Requests scheduled together.", examples=[4]
    )
    max_num_tokens: Tokens | None = Field(
        default=None,
        description="Packed input tokens of one forward pass; the backend derives it "
        "when it is left out.",
        examples=[8192],
    )
    max_beam_width: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Beams of one request."
    )


class CompileSection(Section):
    """What turns the checkpoint into an engine, for which machine."""

    backend: Annotated[str, AfterValidator(forms.check_slug)] = Field(
        description="Who compiles.",
        examples=["onnxruntime"],
        json_schema_extra={"anyOf": [{"enum": list(BACKENDS)}, {"type": "string"}]},
    )
    target: Annotated[str, AfterValidator(forms.check_target)] = Field(
        default="cpu",
        description="`cpu`, `cuda`, or an instance type such as `ml.g5.12xlarge`.",
        examples=["cpu", "ml.g5.12xlarge"],
        json_schema_extra={"pattern": forms.TARGET_PATTERN},
    )
    release: Annotated[str, AfterValidator(forms.check_slug)] | None = Field(
        default=None,
        description="Row of the catalogue of LMI containers; the newest by default.",
        examples=["djl-tensorrtllm-0.33.0"],
    )
    artifact: Literal["auto", "engine", "checkpoint", "hf-quantized"] = Field(
        default="auto",
        description="What is made: an engine, the checkpoint that an engine is built "
        "from, or a Hugging Face folder that the server quantizes nothing of; `auto` "
        "is an engine where the release has one.",
    )
    loader: Literal["auto", "tnx", "optimum", "nxdi", "trace"] = Field(
        default="auto",
        description="Library that compiles and loads Neuron graphs: Transformers "
        "NeuronX, Optimum Neuron, NxD Inference, or `torch_neuronx.trace` (encoders); "
        "`auto` is the one the release takes for the model.",
    )
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="Ranks that a layer is split over."
    )
    pipeline_parallel_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="Ranks that the layers are split over."
    )
    options: dict[str, Any] = Field(
        default={}, description="The backend's own options; it checks them."
    )


class ServeSection(Section):
    """Settings of the server that do not change the engine."""

    rolling_batch: Literal[
        "auto",
        "disable",
        "vllm",
        "trtllm",
        "tnx",
        "lmi-dist",
        "scheduler",
        "deepspeed",
    ] = Field(
        default="auto",
        description="LMI's `option.rolling_batch`; `auto` lets the layout choose.",
    )
    options: dict[str, Any] = Field(
        default={},
        description="The backend's own settings of its server; it checks them.",
        examples=[{"kv_cache_fraction": 0.9}],
    )
    model_loading_timeout: Seconds = Field(
        default=1800, description="Seconds that loading may take."
    )
    predict_timeout: Seconds = Field(
        default=240, description="Seconds that one request may take."
    )
    environment: Annotated[
        dict[VariableName, VariableValue], AfterValidator(forms.check_environment)
    ] = Field(
        default={},
        description="Further variables of the container; never secrets.",
        examples=[{"OMP_NUM_THREADS": "2"}],
    )


class GatesSection(Section):
    """Floors and ceilings that fail a build; what is left out is no gate."""

    max_perplexity_ratio: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None,
        description="Engine perplexity over the float model's.",
        examples=[1.1],
    )
    max_mean_kl: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="Mean KL divergence per token, in nats.",
        examples=[0.1],
    )
    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Share of tokens with the same most likely successor, 0 to 1.",
        examples=[0.85],
    )
    max_abs_logit_error: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="Largest difference of any logit.",
        examples=[8.0],
    )


class VerifySection(Section):
    """What is tried on the packed artifact."""

    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=100)] = Field(
        default=["What is the capital of France?"],
        description="Questions answered greedily.",
    )
    max_new_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        default=None,
        description="Length of those answers; 32 or `max_output_len`, if smaller.",
        examples=[32],
    )
    num_samples: Count = Field(
        default=8, description="Held-out sequences on which logits are compared."
    )
    max_seq_len: Tokens | None = Field(
        default=None,
        description="Tokens of one of them; 512 or `max_input_len`, if smaller.",
        examples=[512],
    )
    gates: GatesSection = GatesSection.model_construct()


class PackageSection(Section):
    """How the artifact lies on disk."""

    layout: Literal["djl-lmi"] = Field(
        default="djl-lmi", description="The folder that LMI containers read."
    )
    format: Literal["prefix", "tar.gz"] = Field(
        default="prefix", description="A folder, or one `model.tar.gz`."
    )


class PublishSection(Section):
    """Where the artifact goes."""

    to: Annotated[str, AfterValidator(aws_forms.check_destination)] = Field(
        description="`s3://bucket/prefix` or a folder.",
        examples=["s3://my-models/smollm2"],
        json_schema_extra={"minLength": 1},
    )
    kms_key_id: KmsKey | None = Field(
        default=None,
        description="Key of server-side encryption: an alias, an id or an ARN.",
        examples=["alias/models"],
    )
    tags: Annotated[dict[TagKey, TagValue], AfterValidator(aws_forms.check_tags)] = (
        Field(default={}, description="Object tags.", examples=[{"team": "search"}])
    )
    expected_bucket_owner: Account | None = Field(
        default=None,
        description="The 12 digits of the account that must own the bucket, quoted.",
        examples=["111122223333"],
        json_schema_extra={"pattern": aws_forms.OWNER_PATTERN},
    )
    endpoint_url: Endpoint | None = Field(
        default=None,
        description="Another S3 server.",
        examples=["http://localhost:9000"],
    )
    region: Region | None = Field(
        default=None, description="AWS region of the bucket.", examples=["us-east-1"]
    )


class RecipeModel(Section):
    """One artifact: a model, quantized, compiled, checked, packed and published."""

    model_config = ConfigDict(defer_build=False)

    schema_: Literal["lmi-build/v1"] = Field(
        alias="schema", description="Version of this grammar.", examples=[SCHEMA]
    )
    name: Annotated[str, AfterValidator(forms.check_name)] = Field(
        description="Name of the artifact; a folder and a part of S3 keys.",
        examples=["smollm2-135m-gptq-cpu"],
        json_schema_extra={"pattern": forms.NAME_PATTERN},
    )
    model: ModelSection
    quantize: Annotated[QuantizeSection, Field(discriminator="method")] = (
        NoneMethod.model_construct(method="none")
    )
    bounds: BoundsSection
    compile: CompileSection
    serve: ServeSection = ServeSection.model_construct()
    verify: VerifySection = VerifySection.model_construct()
    package: PackageSection = PackageSection.model_construct()
    publish: PublishSection | None = None
    job: JobSection | None = None
