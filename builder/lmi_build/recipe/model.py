"""
The grammar of a recipe, as pydantic models: the one place of defaults and ranges.

Models exist only at the door: `load` turns them into the frozen values of
`values.recipe`. Each quantization method is a model of its own, so that an option a
method would ignore is an unknown key rather than a silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lmi_build.recipe import aws_forms, forms, job_forms

SCHEMA = "lmi-build/v1"

# Larger than any model's positions or any batch; they catch slips of the keyboard.
MAX_TOKENS = 1 << 24
MAX_COUNT = 1 << 16
MAX_SECONDS = 24 * 60 * 60
MAX_SEED = (1 << 32) - 1

# Limits of SageMaker's CreateProcessingJob and CreateTrainingJob, the narrower of both.
MAX_HOSTS = 100
MAX_JOB_SECONDS = 777_600
MAX_JOB_VARIABLES = 90  # of 100; the rest is for what we set ourselves

# Backends and quantizers of this project; others come as plugins (entry points).
BACKENDS = ("onnxruntime", "tensorrt-llm", "neuronx", "aotinductor", "vllm")
PROVIDERS = (
    "builtin",
    "llmcompressor",
    "gptqmodel",
    "autoawq",
    "auto-gptq",
    "modelopt",
)

Tokens: TypeAlias = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Seconds: TypeAlias = Annotated[int, Field(ge=1, le=MAX_SECONDS)]
GroupSize: TypeAlias = Literal[-1, 16, 32, 64, 128, 256]
IgnoreItem: TypeAlias = Annotated[str, AfterValidator(forms.check_ignore)]
Ignore: TypeAlias = Annotated[
    list[IgnoreItem],
    Field(
        max_length=1000,
        description="Module names or `*` patterns that stay in float.",
        examples=[["lm_head"]],
    ),
]
Provider: TypeAlias = Annotated[
    str,
    AfterValidator(forms.check_slug),
    Field(
        description="Who runs the method; `builtin` needs nothing else installed.",
        json_schema_extra={"anyOf": [{"enum": list(PROVIDERS)}, {"type": "string"}]},
    ),
]
VariableName: TypeAlias = Annotated[str, AfterValidator(forms.check_variable)]
VariableValue: TypeAlias = Annotated[str, AfterValidator(forms.check_variable_value)]
TagKey: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_tag_key)]
TagValue: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_tag_value)]
KmsKey: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_kms_key)]
Account: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_owner)]
Endpoint: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_endpoint)]
Region: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_region)]
Prompt: TypeAlias = Annotated[str, AfterValidator(forms.check_prompt)]
InstanceType: TypeAlias = Annotated[str, AfterValidator(job_forms.check_instance)]
StageKind: TypeAlias = Annotated[str, AfterValidator(job_forms.check_stage_kind)]
Image: TypeAlias = Annotated[str, AfterValidator(job_forms.check_image)]
NetworkId: TypeAlias = Annotated[str, AfterValidator(job_forms.check_network_id)]
JobVariable: TypeAlias = Annotated[str, AfterValidator(job_forms.check_variable)]
JobValue: TypeAlias = Annotated[str, AfterValidator(job_forms.check_variable_value)]


class Section(BaseModel):
    """Frozen, exact types, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        # Sections are built once, inside `RecipeModel`: half of the start-up time.
        defer_build=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )


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


class CalibrationSection(Section):
    """The text that activations are observed on."""

    dataset: Annotated[str, AfterValidator(forms.check_dataset)] = Field(
        default="builtin:python-docs",
        description="`builtin:python-docs`; a .txt, .md, .jsonl, .json, .csv or "
        ".parquet file (all but the last also with .gz); one such file on S3; or "
        "`hub:owner/name[@revision][/path]`, where the path is a file, a folder or "
        "a pattern with `*`.",
        examples=["builtin:python-docs"],
    )
    num_samples: Count = Field(default=64, description="Number of sequences.")
    max_seq_len: Tokens = Field(default=512, description="Tokens of one sequence.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = Field(
        default=0, description="Seed of the draw."
    )
    chat_template: bool = Field(
        default=False,
        description="Whether rows are wrapped in the model's chat template.",
    )


class NoneMethod(Section):
    """Keep the weights as they are."""

    method: Literal["none"] = Field(description="No quantization.")


KvCache: TypeAlias = Annotated[
    Literal["auto", "int8", "fp8"],
    Field(
        description="Type of the key and value cache; `auto` is the activations' type, "
        "the others calibrate a scale for each layer.",
    ),
]
Scheme: TypeAlias = Annotated[
    Literal["dynamic", "static"],
    Field(
        description="`dynamic` finds a scale for each token as it comes, `static` one "
        "for each layer during calibration.",
    ),
]
Damp: TypeAlias = Annotated[
    float,
    Field(gt=0, lt=1, description="Dampening, as a share of the mean diagonal."),
]
GroupSizeField: TypeAlias = Annotated[
    GroupSize,
    Field(
        description="Input channels that share a scale; -1 is the whole row. It must "
        "divide the input width of every layer.",
    ),
]


class RtnMethod(Section):
    """Weights to the nearest code, without data: the baseline of all others."""

    method: Literal["rtn"] = Field(description="Round to nearest.")
    provider: Provider = "builtin"
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="Bits of one weight.")
    group_size: GroupSizeField = 128
    sym: bool = Field(default=True, description="Symmetric, without zero points.")
    format: Literal["auto", "gptq", "gptq_v2", "awq", "compressed-tensors"] = Field(
        default="auto", description="How the weights are packed; `auto` is `gptq`."
    )
    ignore: Ignore = ["lm_head"]


class Int8Method(Section):
    """Weights to 8 bits; needs no data unless activations get static scales."""

    method: Literal["int8"] = Field(description="8-bit weights, per channel.")
    provider: Provider = "builtin"
    group_size: GroupSizeField = -1
    activations: Literal["none", "dynamic", "static"] = Field(
        default="none",
        description="Whether activations are 8 bits too (W8A8), and when their scale "
        "is found; `none` is weight-only.",
    )
    kv_cache_dtype: KvCache = "auto"
    format: Literal["auto", "gptq", "gptq_v2", "compressed-tensors"] = Field(
        default="auto",
        description="How the weights are packed; `auto` is `gptq` for weight-only, "
        "`compressed-tensors` for W8A8.",
    )
    ignore: Ignore = ["lm_head"]
    calibration: CalibrationSection | None = Field(
        default=None, description="Only for static activations and KV-cache scales."
    )


class Fp8Method(Section):
    """Weights and activations to 8-bit floats (e4m3)."""

    method: Literal["fp8"] = Field(description="FP8 W8A8 (arXiv:2209.05433).")
    provider: Provider = "builtin"
    granularity: Literal["channel", "tensor"] = Field(
        default="channel",
        description="Weights that share a scale: an output channel, or all.",
    )
    activations: Scheme = "dynamic"
    kv_cache_dtype: KvCache = "auto"
    format: Literal["auto", "compressed-tensors"] = Field(
        default="auto", description="How the weights are packed."
    )
    ignore: Ignore = ["lm_head"]
    calibration: CalibrationSection | None = Field(
        default=None, description="Only for static activations and KV-cache scales."
    )


class GptqMethod(Section):
    """Weights to few bits, each rounding error corrected in the next columns."""

    method: Literal["gptq"] = Field(description="GPTQ (arXiv:2210.17323).")
    provider: Provider = "builtin"
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="Bits of one weight.")
    group_size: GroupSizeField = 128
    sym: bool = Field(default=True, description="Symmetric, without zero points.")
    desc_act: bool = Field(
        default=True, description="Visit columns by falling activation (act-order)."
    )
    true_sequential: bool = Field(
        default=True,
        description="Calibrate each layer on what the layers before it became; "
        "otherwise a block is calibrated in one pass.",
    )
    damp_percent: Damp = 0.01
    kv_cache_dtype: KvCache = "auto"
    format: Literal["auto", "gptq", "gptq_v2", "awq", "compressed-tensors"] = Field(
        default="auto", description="How the weights are packed; `auto` is `gptq`."
    )
    ignore: Ignore = ["lm_head"]
    calibration: CalibrationSection = CalibrationSection.model_construct()


class AwqMethod(Section):
    """Weights to 4 bits, after scaling the channels that activations weigh most."""

    method: Literal["awq"] = Field(description="AWQ (arXiv:2306.00978).")
    provider: Provider = "builtin"
    bits: Literal[4] = Field(default=4, description="Bits of one weight.")
    group_size: GroupSizeField = 128
    sym: bool = Field(default=False, description="Symmetric, without zero points.")
    clip: bool = Field(
        default=True, description="Search how much of each group's range to clip."
    )
    then_gptq: bool = Field(
        default=False,
        description="Round the scaled weights by GPTQ's columns, not to nearest.",
    )
    damp_percent: Damp = 0.01
    kv_cache_dtype: KvCache = "auto"
    format: Literal["auto", "awq", "gptq", "gptq_v2", "compressed-tensors"] = Field(
        default="auto", description="How the weights are packed; `auto` is `awq`."
    )
    ignore: Ignore = ["lm_head"]
    calibration: CalibrationSection = CalibrationSection.model_construct()


class SmoothQuantMethod(Section):
    """Weights and activations to 8 bits, after moving outliers into the weights."""

    method: Literal["smoothquant"] = Field(description="W8A8 (arXiv:2211.10438).")
    provider: Provider = "builtin"
    smoothing_strength: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="SmoothQuant's alpha, from 0 to 1; left out, the best one of each "
        "layer is searched.",
        examples=[0.5],
    )
    activations: Scheme = "dynamic"
    kv_cache_dtype: KvCache = "auto"
    format: Literal["auto", "compressed-tensors"] = Field(
        default="auto", description="How the weights are packed."
    )
    ignore: Ignore = ["lm_head"]
    calibration: CalibrationSection = CalibrationSection.model_construct()


QuantizeSection: TypeAlias = (
    NoneMethod
    | RtnMethod
    | Int8Method
    | Fp8Method
    | GptqMethod
    | AwqMethod
    | SmoothQuantMethod
)
METHODS: dict[str, type[Section]] = {
    "none": NoneMethod,
    "gptq": GptqMethod,
    "awq": AwqMethod,
    "smoothquant": SmoothQuantMethod,
    "int8": Int8Method,
    "rtn": RtnMethod,
    "fp8": Fp8Method,
}


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


class JobSection(Section):
    """How the same build runs as SageMaker jobs; it moves no key."""

    store: Annotated[str, AfterValidator(job_forms.check_store)] | None = Field(
        default=None,
        description="`s3://bucket/prefix` of the store that jobs and machines share; "
        "`--store` and `LMI_BUILD_STORE` go before it.",
        examples=["s3://my-models/lmi-build"],
    )
    role: Annotated[str, AfterValidator(job_forms.check_role)] | None = Field(
        default=None,
        description="Role that the jobs run as: its ARN, or its name in your account.",
        examples=["arn:aws:iam::111122223333:role/lmi-build"],
    )
    region: Region | None = Field(
        default=None, description="AWS region of the jobs.", examples=["us-east-1"]
    )
    kind: Literal["auto", "processing", "training"] = Field(
        default="auto",
        description="Kind of job; `auto` is processing, and training where SageMaker "
        "takes the instance for no processing job.",
    )
    instance: Annotated[str, AfterValidator(job_forms.check_instance_or_auto)] = Field(
        default="auto",
        description="Instance type of every stage that `instances` does not name; "
        "`auto` is the smallest that the plan fits.",
        examples=["ml.m5.2xlarge"],
    )
    instances: dict[StageKind, InstanceType] = Field(
        default={},
        description="Kind of stage to the instance type it runs on.",
        examples=[{"quantize": "ml.m5.4xlarge"}],
    )
    num_hosts: Annotated[int, Field(ge=1, le=MAX_HOSTS)] = Field(
        default=1, description="Hosts of one job that share its stages."
    )
    max_jobs: Annotated[int, Field(ge=1, le=MAX_HOSTS)] = Field(
        default=4, description="Jobs that may run at once."
    )
    image: Image | None = Field(
        default=None,
        description="Image of every job: a URI, or `sha256:...` that pins the "
        "catalogue's; the catalogue's by default.",
        examples=["111122223333.dkr.ecr.us-east-1.amazonaws.com/lmi-build:1"],
    )
    images: dict[StageKind, Image] = Field(
        default={}, description="Kind of stage to the image it runs in."
    )
    wheels: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Folder of wheels that jobs install beside what their image has, "
        "without a network; relative to the recipe.",
        examples=["./wheels"],
    )
    volume_size_gb: Annotated[Any, AfterValidator(job_forms.check_volume)] = Field(
        default="auto",
        description="Disk of one host in GB; `auto` is what the plan needs.",
        examples=[200],
        json_schema_extra={
            "anyOf": [
                {"const": "auto"},
                {"type": "integer", "minimum": 1, "maximum": job_forms.MAX_VOLUME_GB},
            ]
        },
    )
    volume_kms_key_id: KmsKey | None = Field(
        default=None, description="Key that encrypts that disk."
    )
    output_kms_key_id: KmsKey | None = Field(
        default=None, description="Key that encrypts what jobs write to S3."
    )
    max_runtime_seconds: Annotated[int, Field(ge=1, le=MAX_JOB_SECONDS)] | None = Field(
        default=None,
        description="When SageMaker stops a job; from the plan by default.",
        examples=[14400],
    )
    spot: bool = Field(
        default=False, description="Whether training jobs run on spare capacity."
    )
    max_wait_seconds: Annotated[int, Field(ge=1, le=MAX_JOB_SECONDS)] | None = Field(
        default=None,
        description="Longest time of a job on spare capacity, waiting included.",
    )
    subnets: Annotated[list[NetworkId], Field(max_length=16)] = Field(
        default=[], description="Subnets of your VPC.", examples=[["subnet-0abc123"]]
    )
    security_group_ids: Annotated[list[NetworkId], Field(max_length=5)] = Field(
        default=[], description="Its security groups.", examples=[["sg-0abc123"]]
    )
    network_isolation: bool = Field(
        default=False,
        description="No network in the jobs; what they need comes by channels.",
    )
    encrypt_traffic: bool = Field(
        default=False, description="Encrypt what the hosts of one job tell each other."
    )
    tags: Annotated[dict[TagKey, TagValue], AfterValidator(job_forms.check_tags)] = (
        Field(default={}, description="Tags of the jobs.")
    )
    environment: Annotated[
        dict[JobVariable, JobValue], Field(max_length=MAX_JOB_VARIABLES)
    ] = Field(default={}, description="Further variables of the jobs; never secrets.")
    secrets: dict[JobVariable, str] = Field(
        default={},
        description="Variable to `secretsmanager:NAME#KEY` or `ssm:/NAME`; read inside "
        "the job, never written down.",
        examples=[{"HF_TOKEN": "secretsmanager:hub#token"}],
    )
    name_prefix: Annotated[str, AfterValidator(job_forms.check_prefix)] | None = Field(
        default=None,
        description="What the names of jobs start with; the recipe's name by default.",
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
