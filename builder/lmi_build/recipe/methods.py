"""
The methods of `quantize`, each a section of its own.

So an option that a method would ignore is an unknown key rather than a silence.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from lmi_build.recipe import forms
from lmi_build.recipe.section import Count, Section, Tokens

# Quantizers of this project; others come as plugins (entry points).
PROVIDERS = (
    "builtin",
    "llmcompressor",
    "gptqmodel",
    "autoawq",
    "auto-gptq",
    "modelopt",
)
MAX_SEED = (1 << 32) - 1

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
Head: TypeAlias = Annotated[
    bool,
    Field(
        description="Quantize the head as well, whatever `ignore` says: a small model"
        " with many words reads a third fewer bytes a token then. A head tied to the"
        " embedding becomes a matrix of its own. For the provider `builtin` with the"
        " backends `onnxruntime` and `aotinductor`.",
    ),
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
    lm_head: Head = False
    ignore: Ignore = Field(default=["lm_head"])


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
    ignore: Ignore = Field(default=["lm_head"])
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
    ignore: Ignore = Field(default=["lm_head"])
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
    lm_head: Head = False
    ignore: Ignore = Field(default=["lm_head"])
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
    ignore: Ignore = Field(default=["lm_head"])
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
    ignore: Ignore = Field(default=["lm_head"])
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
