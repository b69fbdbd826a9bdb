"""
From what a quantized checkpoint is to the algorithm TensorRT-LLM computes it with.

Four-bit groups become `W4A16_AWQ` whoever chose their numbers: its kernel is the one of
`W4A16_GPTQ`, its layout is the only one that belongs to no GPU, and it carries zero
points (`int4_layout`). `W4A16_GPTQ` is what NVIDIA's converter makes of a GPTQ folder,
for the architectures that only it converts.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - `read_row` reads the hints
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.backends.problems import unsupported
from lmi_build.backends.trtllm import PACKAGE
from lmi_build.backends.trtllm.models import (
    is_since,
    known_architectures,
    value_at,
)
from lmi_build.catalog.tables import read_rows
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.trtllm.models import TrtllmModel
    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.releases import Release
    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.values.quant import QuantScheme

FILE = "algorithms.toml"
NONE = "NONE"
_INT4, _INT8 = 4, 8
# Least compute capability with FP8 in hardware.
_FP8 = "8.9"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One table of the data file; its fields are explained there."""

    since: str
    needs: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    converter: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """
    How one checkpoint is quantized, in TensorRT-LLM's words.

    Args:
        quant_algo: Entry of its enumeration; empty for a float checkpoint.
        kv_cache_quant_algo: `INT8`, `FP8` or empty.
        writer: `ours`, or `nvidia` for its convert_checkpoint.py on the GPU machine.
        source: What the writer reads: `weights` (what quantization left) or `fetch`
            (the model as it came, which the converter rounds itself).
        group_size: Inputs that share a scale; 0 where there are no groups.
        has_zero_point: Groups have zero points.
    """

    quant_algo: str
    kv_cache_quant_algo: str
    writer: str
    source: str = "weights"
    group_size: int = 0
    has_zero_point: bool = False

    def to_json(self) -> dict[str, JSONValue]:
        """The algorithm as it stands in keys and manifests."""
        return {name: getattr(self, name) for name in self.__slots__}


@cache
def algorithm_rows() -> Mapping[str, _Row]:
    """
    Every algorithm's data by `quant_algo`.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return read_rows(_Row, FILE, package=PACKAGE)


def choose(scheme: QuantScheme, model: TrtllmModel, release: Release) -> Algorithm:
    """
    The algorithm of a checkpoint that `algorithm_problems` found nothing wrong with.

    Args:
        scheme: What quantization left.
        model: The architecture.
        release: For which release.

    Raises:
        ValueError: There is none: `algorithm_problems` was not asked.
    """
    name, why = _name(scheme)
    writable = model.writable(release.trtllm)
    if not writable and scheme.packing == "gptq" and scheme.weight_bits == _INT4:
        name = "W4A16_GPTQ"
    row = algorithm_rows().get(name)
    if row is None or why:
        raise ValueError(why or f"no algorithm `{name}`")
    ours = writable and row.ours
    rounded = not ours and row.converter == "float" and name != NONE
    return Algorithm(
        quant_algo="" if name == NONE else name,
        kv_cache_quant_algo={"auto": ""}.get(
            scheme.kv_cache_dtype, scheme.kv_cache_dtype.upper()
        ),
        writer="ours" if ours else "nvidia",
        source="fetch" if rounded else "weights",
        group_size=scheme.group_size if row.groups else 0,
        has_zero_point=bool(row.groups) and not scheme.sym,
    )


def algorithm_problems(
    scheme: QuantScheme,
    model: TrtllmModel,
    release: Release,
    instance: Instance | None = None,
    *,
    dtype: str = "",
) -> Iterator[Problem]:
    """
    Why a quantized model cannot become an engine of a release, with the way out.

    Args:
        scheme: What quantization left.
        model: The architecture.
        release: For which release.
        instance: For which machine; None leaves GPUs out.
        dtype: Of what is not quantized; empty leaves it out.
    """
    version = release.trtllm
    if not model.supported(version):
        yield unsupported(
            f"TensorRT-LLM {version} has no engine for `{model.name}`",
            "model.source",
            f"use a model of {known_architectures(version)}",
        )
        return
    name, why = _name(scheme)
    if why:
        yield unsupported(why, "quantize", _way_out(scheme))
        return
    algorithm = choose(scheme, model, release)
    row = algorithm_rows()[algorithm.quant_algo or NONE]
    name = algorithm.quant_algo
    if row.needs and not set(row.needs) & set(model.quantization):
        yield unsupported(
            f"`{model.name}` has no {join_words(row.needs)} in TensorRT-LLM",
            "quantize.method",
            _methods(model),
        )
    elif algorithm.writer == "nvidia":
        yield from _converter_problems(scheme, algorithm, row, model)
    yield from _kernel_problems(scheme, row, name, version, dtype)
    if instance is not None:
        yield from _gpu_problems(scheme, release, instance)


def _name(scheme: QuantScheme) -> tuple[str, str]:
    """The algorithm of a scheme, or why there is none."""
    if scheme.packing == "none":
        return NONE, ""
    if scheme.weight_dtype == "float":
        return "", "lmi-build writes no FP8 checkpoint for engines of TensorRT-LLM"
    if scheme.act_order:
        return "", "groups hold channels in activation order, which kernels do not read"
    if scheme.activation_dtype == "int" and scheme.weight_bits == _INT8:
        return _smoothquant(scheme), ""
    if scheme.activation_dtype != "none":
        return "", (
            f"{scheme.weight_bits}-bit weights with"
            f" {scheme.activation_bits}-bit activations have no kernel"
        )
    if scheme.weight_bits == _INT4:
        return "W4A16_AWQ", ""
    if scheme.weight_bits == _INT8 and scheme.group_size == -1 and scheme.sym:
        return "W8A16", ""
    return "", (
        f"{scheme.weight_bits}-bit weights in groups of {scheme.group_size},"
        f" {'without' if scheme.sym else 'with'} zero points, have no kernel"
    )


def _smoothquant(scheme: QuantScheme) -> str:
    """The plugins' name: what shares a scale of the weights, then of the inputs."""
    weights = "CHANNEL" if scheme.granularity == "channel" else "TENSOR"
    inputs = "TOKEN" if scheme.activation_scheme == "dynamic" else "TENSOR"
    shared = weights if weights == inputs else f"{weights}_PER_{inputs}"
    return f"W8A8_SQ_PER_{shared}_PLUGIN"


def _way_out(scheme: QuantScheme) -> str:
    if scheme.weight_dtype == "float":
        return "set `compile.artifact: hf-quantized`, or `quantize.method: smoothquant`"
    if scheme.act_order:
        return "use a model that was quantized without it (`desc_act: false`)"
    if scheme.activation_dtype != "none":
        return "set `bits: 8` with activations, or `activations: none`"
    return "set `bits: 4` with `group_size: 128`, or `method: int8`"


def _methods(model: TrtllmModel) -> str:
    methods = {"int8": "int8", "awq": "awq", "gptq": "gptq", "smoothquant": ""}
    names = [methods[key] or key for key in model.quantization if key in methods]
    return f"set `method:` to {join_words(['none', *names])}"


def _kernel_problems(
    scheme: QuantScheme, row: _Row, name: str, version: str, dtype: str
) -> Iterator[Problem]:
    """Versions, groups and dtypes that an algorithm has no kernels for."""
    if not is_since(version, row.since):
        yield unsupported(
            f"TensorRT-LLM {version} does not have `{name}`, which came with"
            f" {row.since}",
            "compile.release",
            f"choose a release with TensorRT-LLM {row.since} or later",
        )
    if row.groups and scheme.group_size not in row.groups:
        sizes = join_words([str(size) for size in row.groups])
        yield unsupported(
            f"`group_size` is {scheme.group_size}, kernels of `{name}` have {sizes}",
            "quantize.group_size",
            f"set `group_size:` to {sizes}",
        )
    dtypes = (value_at(row.dtypes, version) or "").split()
    if dtype and dtypes and dtype not in dtypes:
        yield unsupported(
            f"kernels of `{name}` in TensorRT-LLM {version} compute in"
            f" {join_words(dtypes)}, the model is in `{dtype}`",
            "model.dtype",
            f"set `dtype: {dtypes[0]}`, or choose a newer release",
        )


def _converter_problems(
    scheme: QuantScheme, algorithm: Algorithm, row: _Row, model: TrtllmModel
) -> Iterator[Problem]:
    """What NVIDIA's converter cannot take over from us."""
    name = algorithm.quant_algo
    if not row.converter:
        yield unsupported(
            f"lmi-build writes no checkpoint of `{model.name}`, and NVIDIA's converter"
            f" makes `{name}` only with a calibration of its own",
            "quantize.method",
            "set `method:` to `none`, `int8` or `gptq`",
        )
    elif row.converter == "gptq" and scheme.packing != "gptq":
        yield unsupported(
            f"NVIDIA's converter reads four-bit weights packed as `gptq` only, these"
            f" are packed as `{scheme.packing}`",
            "quantize.format",
            "set `method: gptq` and `format: gptq`",
        )
    if algorithm.kv_cache_quant_algo:
        yield unsupported(
            f"a key-value cache in {scheme.kv_cache_dtype} needs scales that NVIDIA's"
            f" converter of `{model.name}` does not take over",
            "quantize.kv_cache_dtype",
            "set `kv_cache_dtype: auto`",
        )


def _gpu_problems(
    scheme: QuantScheme, release: Release, instance: Instance
) -> Iterator[Problem]:
    if instance.accelerator != "gpu":
        yield unsupported(
            f"`{instance.name}` has no NVIDIA GPU",
            "compile.target",
            "choose an instance such as `ml.g5.2xlarge`",
        )
        return
    has = instance.compute_capability
    if release.compute_capabilities and has not in release.compute_capabilities:
        known = ", ".join(sorted(release.compute_capabilities, key=_capability))
        yield unsupported(
            f"`{instance.name}` has an {instance.device} of compute capability {has},"
            f" TensorRT-LLM {release.trtllm} is made for {known}",
            "compile.target",
            "choose an instance such as `ml.g5.2xlarge`, or another release",
        )
    if scheme.kv_cache_dtype == "fp8" and _capability(has) < _capability(_FP8):
        yield unsupported(
            f"a key-value cache in fp8 needs compute capability {_FP8}, the"
            f" {instance.device} of `{instance.name}` has {has}",
            "quantize.kv_cache_dtype",
            "set `kv_cache_dtype: int8`, or choose an instance such as `ml.g6.2xlarge`",
        )


def _capability(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
