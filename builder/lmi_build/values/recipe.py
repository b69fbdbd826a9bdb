"""
A recipe after its text was read and checked: plain frozen values.

`recipe.load` makes them; everything below the door works with these and never with
YAML or with the validation library.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lmi_build.values.dataset import PYTHON_DOCS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem, Span
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.dataset import DatasetFacts
    from lmi_build.values.lock import Lock


# A provider that no recipe names: the backend's toolchain rounds weights as it loads
# them, and there is no stage before it.
COMPILER = "compiler"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """
    Which model, from where.

    Args:
        source: Hub repository, folder, `s3://` prefix or `.gguf` file.
        revision: Branch, tag or commit of a hub repository.
        dtype: `auto` keeps what the source has; else the float type of the weights.
        trust_remote_code: Whether the model's own Python files may be fetched and run;
            their digests then enter the key.
    """

    source: str
    revision: str = "main"
    dtype: str = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSpec:
    """
    The text that activations are observed on.

    Args:
        dataset: `builtin:python-docs`, a data file, a hub data set
            (`hub:owner/name[@revision][/path]`) or an `s3://` object.
        num_samples: Sequences.
        max_seq_len: Tokens of one sequence.
        seed: Order of the draw.
        chat_template: Whether rows are wrapped in the model's chat template.
        facts: The files of the data set, once they are resolved; None before, and
            for a built-in text.
    """

    dataset: str = PYTHON_DOCS
    num_samples: int = 64
    max_seq_len: int = 512
    seed: int = 0
    chat_template: bool = False
    facts: DatasetFacts | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantSpec:
    """
    How weights become smaller.

    Args:
        method: `none`, `rtn`, `gptq`, `awq`, `smoothquant`, `int8` or `fp8`.
        provider: Who runs it; `builtin` unless named. A backend may make it `COMPILER`.
        bits: Bits of one weight.
        group_size: Input channels that share a scale; -1 is the whole row.
        sym: Symmetric around zero, without zero points.
        desc_act: GPTQ visits columns by falling activation.
        true_sequential: GPTQ calibrates each layer on what those before it became.
        damp_percent: GPTQ's dampening, as a share of the mean diagonal.
        clip: AWQ searches a clipping of each group's range.
        then_gptq: AWQ rounds the scaled weights by GPTQ's columns.
        smoothing_strength: SmoothQuant's alpha, 0 to 1; None searches it.
        activations: `none` keeps them in float; `dynamic` or `static` 8 bits.
        granularity: What shares an FP8 scale, `channel` or `tensor`.
        kv_cache_dtype: `auto`, `int8` or `fp8`.
        format: `auto`, `gptq`, `gptq_v2`, `awq` or `compressed-tensors`.
        lm_head: The head is quantized too.
        ignore: Module names or `*` patterns that stay as they are.
        calibration: None for methods that never need data.
    """

    method: str = "none"
    provider: str = "builtin"
    bits: int = 16
    group_size: int = -1
    sym: bool = True
    desc_act: bool = True
    true_sequential: bool = True
    damp_percent: float = 0.01
    clip: bool = True
    then_gptq: bool = False
    smoothing_strength: float | None = None
    activations: str = "none"
    granularity: str = "channel"
    kv_cache_dtype: str = "auto"
    format: str = "auto"
    lm_head: bool = False
    ignore: tuple[str, ...] = ("lm_head",)
    calibration: CalibrationSpec | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileSpec:
    """
    What turns a checkpoint into an engine, for which machine.

    Args:
        backend: Name of a backend provider.
        target: `cpu` or an instance type.
        release: Row of the catalogue; None takes the newest.
        artifact: `auto`, `engine`, `checkpoint` or `hf-quantized`.
        loader: Library that compiles and loads, where a backend has several: `auto`,
            `tnx`, `optimum`, `nxdi` or `trace`.
        tensor_parallel_size: Ranks a layer is split over.
        pipeline_parallel_size: Ranks the layers are split over.
        options: The backend's own options, checked by the backend.
    """

    backend: str
    target: str = "cpu"
    release: str | None = None
    artifact: str = "auto"
    loader: str = "auto"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    options: Mapping[str, JSONValue] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSpec:
    """
    Settings of the server that do not change the engine.

    Args:
        rolling_batch: LMI's `option.rolling_batch`; `auto` lets the layout choose.
        model_loading_timeout: Seconds the front end waits for the worker to load.
        predict_timeout: Seconds one request may take.
        environment: Extra environment variables of the container.
        options: The backend's own settings of its server, checked by the backend.
    """

    rolling_batch: str = "auto"
    model_loading_timeout: int = 1800
    predict_timeout: int = 240
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, JSONValue] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """
    Floors and ceilings that fail a build; None is no gate.

    Args:
        max_perplexity_ratio: Engine perplexity over the float model's.
        max_mean_kl: Mean KL divergence per token, in nats.
        min_top1_agreement: Share of tokens with the same most likely successor.
        max_abs_logit_error: Largest difference of any logit.
    """

    max_perplexity_ratio: float | None = None
    max_mean_kl: float | None = None
    min_top1_agreement: float | None = None
    max_abs_logit_error: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifySpec:
    """
    What is tried on the packed artifact.

    Args:
        prompts: Questions answered greedily.
        max_new_tokens: Length of those answers, in tokens.
        num_samples: Held-out sequences for the comparison of logits.
        max_seq_len: Tokens of one held-out sequence.
        gates: What fails the build.
    """

    prompts: tuple[str, ...] = ("What is the capital of France?",)
    max_new_tokens: int = 32
    num_samples: int = 8
    max_seq_len: int = 512
    gates: Gates = field(default_factory=Gates)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageSpec:
    """
    How the artifact lies on disk.

    Args:
        layout: `djl-lmi`.
        format: `prefix` (a folder) or `tar.gz`.
    """

    layout: str = "djl-lmi"
    format: str = "prefix"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishSpec:
    """
    Where the artifact goes.

    Args:
        to: `s3://bucket/prefix` or a folder.
        kms_key_id: Key for server-side encryption.
        tags: Object tags.
        expected_bucket_owner: Account that must own the bucket.
        endpoint_url: Another S3 endpoint.
        region: AWS region.
    """

    to: str
    kms_key_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    expected_bucket_owner: str | None = None
    endpoint_url: str | None = None
    region: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """
    How the same build runs as SageMaker jobs; in no key.

    Args:
        store: `s3://bucket/prefix` of the shared store; None leaves it to the settings.
        role: ARN or name of the role the jobs run as.
        region: AWS region of the jobs.
        kind: `auto`, `processing` or `training`.
        instance: Instance type, or `auto`.
        instances: Kind of stage to its instance type.
        num_hosts: Hosts of one job.
        max_jobs: Jobs at once.
        image: URI or digest; None takes the catalogue's.
        images: Kind of stage to its URI or digest.
        wheels: Folder of wheels that jobs install beside what their image has.
        volume_size_gb: Disk of one host in GB; None takes what the plan needs.
        volume_kms_key_id: Key of that disk.
        output_kms_key_id: Key of what jobs write to S3.
        max_runtime_seconds: When SageMaker stops a job; None takes it from the plan.
        spot: Whether training jobs run on spare capacity.
        max_wait_seconds: Longest time of such a job, waiting included.
        subnets: Of the user's VPC.
        security_group_ids: Of the user's VPC.
        network_isolation: No network in the jobs.
        encrypt_traffic: Between the hosts of one job.
        tags: Of the jobs.
        environment: Further variables.
        secrets: Variable to the reference of its secret.
        name_prefix: What jobs' names start with; None takes the recipe's name.
    """

    store: str | None = None
    role: str | None = None
    region: str | None = None
    kind: str = "auto"
    instance: str = "auto"
    instances: Mapping[str, str] = field(default_factory=dict)
    num_hosts: int = 1
    max_jobs: int = 4
    image: str | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    wheels: str | None = None
    volume_size_gb: int | None = None
    volume_kms_key_id: str | None = None
    output_kms_key_id: str | None = None
    max_runtime_seconds: int | None = None
    spot: bool = False
    max_wait_seconds: int | None = None
    subnets: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    network_isolation: bool = False
    encrypt_traffic: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    name_prefix: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """
    One artifact's recipe (a `matrix` file makes several).

    Args:
        name: Name of the artifact; a matrix variant's ends in its values.
        file: Path as the user gave it.
        document: The resolved recipe, defaults and overrides in, as JSON.
        overrides: `--set` arguments, as given.
        spans: Dotted path to its place in the text.
        variant: The matrix values that made this variant.
        job: How it runs as SageMaker jobs; None where the recipe does not say.
        lock: What the file was resolved to before, where a lock lies beside it.
        family: Name in the file, which every variant's name starts with.
    """

    name: str
    file: str
    model: ModelSpec
    quantize: QuantSpec
    bounds: Bounds
    compile: CompileSpec
    serve: ServeSpec
    verify: VerifySpec
    package: PackageSpec
    publish: PublishSpec | None
    document: Mapping[str, JSONValue]
    overrides: tuple[str, ...] = ()
    spans: Mapping[str, Span] = field(default_factory=dict)
    variant: Mapping[str, JSONValue] = field(default_factory=dict)
    job: JobSpec | None = None
    lock: Lock | None = None
    family: str = ""

    def locate(self, problem: Problem) -> Problem:
        """Give a problem the place of its dotted path, or of the nearest parent."""
        path = problem.path
        while path and path not in self.spans:
            path = path.rpartition(".")[0]
        span = problem.span or self.spans.get(path)
        return replace(problem, span=span)
