"""The call of NVIDIA's convert_checkpoint.py, for what lmi-build does not write."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - `read_row` reads the hints
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.backends.problems import unsupported
from lmi_build.backends.trtllm import PACKAGE
from lmi_build.backends.trtllm.models import value_at
from lmi_build.catalog.tables import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.trtllm.algorithms import Algorithm
    from lmi_build.backends.trtllm.models import TrtllmModel
    from lmi_build.catalog.releases import Release
    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelGeometry

FILE = "converters.toml"
# Names of what a conversion reads and writes, in the folder where it runs.
SOURCE, EXAMPLES, CHECKPOINT = "source", "examples", "checkpoint"
# The one file of GPTQ weights, inside `SOURCE`.
QUANTIZED = "model.safetensors"
_BAICHUAN_13B = 5120
_BAICHUAN_V1_VOCAB = 64000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One table of the data file; its fields are explained there."""

    style: Mapping[str, str]
    extra: tuple[str, ...] = ()
    weight_only: tuple[str, ...] = ()
    gptq: Mapping[str, str] = field(default_factory=dict)
    group: tuple[str, ...] = ()
    variant: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """
    One call of the converter.

    Args:
        script: Its place in TensorRT-LLM's repository.
        arguments: Its words, without `--workers`; folders by the names above.
        quantized: It reads one file of GPTQ weights, beside a `config.json` that does
            not speak of quantization.
        parallel: It takes `--workers`.
    """

    script: str
    arguments: tuple[str, ...]
    quantized: bool = False
    parallel: bool = True

    def to_json(self) -> dict[str, JSONValue]:
        """The call as it stands in a stage's parameters."""
        return {
            "script": self.script,
            "arguments": list(self.arguments),
            "quantized": self.quantized,
            "parallel": self.parallel,
        }


@cache
def converter_rows() -> Mapping[str, _Row]:
    """
    Every converter's data by family.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return read_rows(_Row, FILE, package=PACKAGE)


def conversion_problems(
    model: TrtllmModel,
    algorithm: Algorithm,
    release: Release,
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
) -> Iterator[Problem]:
    """
    What the converter of a release cannot be told.

    Args:
        model: The architecture.
        algorithm: Its writer is `nvidia`.
        release: For which release.
        tensor_parallel_size: Ranks that a layer is split over.
        pipeline_parallel_size: Ranks that the layers are split over.
    """
    version = release.trtllm
    row = converter_rows().get(model.family)
    style = value_at(row.style, version) if row else None
    if row is None or style is None or value_at(model.converter, version) is None:
        yield unsupported(
            f"TensorRT-LLM {version} has no converter for `{model.name}`",
            "compile.release",
            "choose a newer release",
        )
        return
    if algorithm.quant_algo == "W4A16_GPTQ" and value_at(row.gptq, version) is None:
        yield unsupported(
            f"NVIDIA's converter of `{model.name}` takes no GPTQ weights",
            "quantize.method",
            "set `method: none` or `method: int8`",
        )
    if algorithm.quant_algo == "W8A16" and not row.weight_only:
        yield unsupported(
            f"NVIDIA's converter of `{model.name}` does not round weights",
            "quantize.method",
            "set `method: none`",
        )
    ranks = {
        "single": tensor_parallel_size * pipeline_parallel_size,
        "dashed": pipeline_parallel_size,
    }
    if ranks.get(style, 1) > 1:
        name = "pipeline" if style == "dashed" else "tensor"
        yield unsupported(
            f"NVIDIA's converter of `{model.name}` in TensorRT-LLM {version} does not"
            f" split it over {ranks[style]} ranks",
            f"compile.{name}_parallel_size",
            f"set `{name}_parallel_size: 1`, or choose a newer release",
        )


def lower_conversion(
    model: TrtllmModel,
    algorithm: Algorithm,
    release: Release,
    geometry: ModelGeometry,
    *,
    dtype: str,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
) -> Conversion:
    """
    The converter's call; `conversion_problems` found nothing.

    Args:
        model: The architecture.
        algorithm: What it makes.
        release: Of which release.
        geometry: The model's sizes, which name its variant.
        dtype: Of what is not quantized.
        tensor_parallel_size: Ranks that a layer is split over.
        pipeline_parallel_size: Ranks that the layers are split over.

    Raises:
        KeyError: There is no converter: `conversion_problems` was not asked.
    """
    row = converter_rows()[model.family]
    style = value_at(row.style, release.trtllm)
    words = _placed(style or "plain", dtype)
    if style == "plain":
        words += ["--tp_size", str(tensor_parallel_size)]
        words += ["--pp_size", str(pipeline_parallel_size)]
    elif style == "dashed":
        words += ["--world-size", str(tensor_parallel_size)]
    words += row.extra
    if row.variant:
        words += [f"--{row.variant}", _variant(model.family, geometry)]
    if algorithm.quant_algo == "W8A16":
        words += row.weight_only
    quantized = algorithm.quant_algo == "W4A16_GPTQ"
    if quantized:
        words += ["--use_weight_only", "--weight_only_precision", "int4_gptq"]
        words += [*row.group, str(algorithm.group_size)] if row.group else []
        option = value_at(row.gptq, release.trtllm)
        words += [f"--{option}", f"{SOURCE}/{QUANTIZED}"]
    return Conversion(
        script=value_at(model.converter, release.trtllm) or "",
        arguments=tuple(words),
        quantized=quantized,
        parallel=style == "plain",
    )


def _placed(style: str, dtype: str) -> list[str]:
    model, output = (
        ("--model-dir", "--output-model-dir")
        if style == "dashed"
        else ("--model_dir", "--output_dir")
    )
    return [model, SOURCE, output, CHECKPOINT, "--dtype", dtype]


def _variant(family: str, geometry: ModelGeometry) -> str:
    """
    The variant by the model's sizes.

    Source: the published Baichuan and ChatGLM models' config.json.
    """
    if family == "baichuan":
        version = "v1" if geometry.vocab_size == _BAICHUAN_V1_VOCAB else "v2"
        size = "13b" if geometry.hidden_size >= _BAICHUAN_13B else "7b"
        return f"{version}_{size}"
    # From the second version on a few key heads serve all query heads.
    shared = geometry.num_key_value_heads < geometry.num_attention_heads
    return "chatglm2" if shared else "chatglm"
