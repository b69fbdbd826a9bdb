"""The stages of a TensorRT-LLM build: checkpoint, engine, or a folder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.blockers import engine_blocker
from lmi_build.backends.trtllm.bounds import (
    explain,
)
from lmi_build.backends.trtllm.checkpoint_worker import checkpoint_params
from lmi_build.backends.trtllm.coded_names import float_weights
from lmi_build.backends.trtllm.hf_quantized import ENTRY as HF_ENTRY
from lmi_build.backends.trtllm.hf_quantized import SALT as HF_SALT
from lmi_build.backends.trtllm.hf_quantized import (
    hf_quantized_params,
)
from lmi_build.backends.trtllm.lowering import engine_needs, lower_engine, terms_of
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.backends.trtllm.quant_config import reads_cache_scale
from lmi_build.backends.trtllm.resolved import (
    float_dtype,
    ranks_of,
)
from lmi_build.catalog.images import image_uri
from lmi_build.spi import BackendStage
from lmi_build.values.model import DTYPE_BITS
from lmi_build.values.stage import Estimate, Note

if TYPE_CHECKING:
    from lmi_build.backends.trtllm.algorithms import (
        Algorithm,
    )
    from lmi_build.backends.trtllm.lowering import EnginePlan
    from lmi_build.backends.trtllm.target import (
        Target,
    )
    from lmi_build.spi import Host
    from lmi_build.values.model import ModelFacts, TensorFact
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

CHECKPOINT_ENTRY = "lmi_build.backends.trtllm.checkpoint_worker:run"
ENGINE_ENTRY = "lmi_build.backends.trtllm.engine_worker:run"
REHEARSAL_ENTRY = "lmi_build.backends.trtllm.rehearsal:run"
# Bumped when a worker writes other bytes for the same parameters.
CHECKPOINT_SALT = 1
ENGINE_SALT = 1
CHECKPOINT_TOOLS = ("numpy", "safetensors", "torch")
_REGION = "us-east-1"
# PyTorch, loaded and idle, with the widest tensor of a checkpoint twice.
_BASE_RAM_BYTES = 400 << 20


def checkpoint_stage(
    recipe: Recipe, model: ModelFacts, algorithm: Algorithm, target: Target
) -> BackendStage:
    """The checkpoint of an engine, written on any machine."""
    capability = target.instance.compute_capability
    params = {
        **checkpoint_params(
            target.release.trtllm, float_dtype(model), ranks_of(recipe)
        ),
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
        distributions=CHECKPOINT_TOOLS,
        estimate=Estimate(
            disk_bytes=_checkpoint_bytes(model, algorithm),
            ram_bytes=_BASE_RAM_BYTES + 2 * _widest_bytes(model),
        ),
        platform="any",
    )


def engine_stage(
    recipe: Recipe,
    model: ModelFacts,
    algorithm: Algorithm,
    target: Target,
    host: Host,
) -> BackendStage:
    """The engine, built where the GPU is, or its rehearsal."""
    plan = _engine_plan(recipe, model, algorithm, target)
    needs = engine_needs(
        _checkpoint_bytes(model, algorithm),
        plan.num_ranks,
        writes_checkpoint=plan.conversion is not None,
    )
    ours, image = algorithm.writer == "ours", _image(target, host)
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
            "image": image,
            "examples": host.places.get("trtllm-examples", ""),
            "timing_cache": f"{host.places['cache']}/trtllm-timing"
            if "cache" in host.places
            else "",
            "target": target.instance.name,
            **needs,
        },
        blocker=None
        if host.rehearse
        else engine_blocker(plan, target, needs, host, image=image),
        notes=_engine_notes(recipe, model, algorithm, target),
        # A rehearsal must never be taken for the engine: it has another key.
        platform=f"{platform}-rehearsal" if host.rehearse else platform,
    )


def _engine_notes(
    recipe: Recipe, model: ModelFacts, algorithm: Algorithm, target: Target
) -> tuple[Note, ...]:
    """What was derived from the bounds, and what the release does with a cache."""
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
    version = target.release.trtllm
    cache = algorithm.kv_cache_quant_algo.lower()
    if cache and not reads_cache_scale(cache, trtllm=version):
        message = (
            f"TensorRT-LLM {version} takes 1.0 for the scales of an {cache} cache,"
            " whatever the checkpoint says; 0.15 and later read them"
        )
        notes += (Note(level="warning", code="trtllm.cache-scale", message=message),)
    return notes


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
        dtype=float_dtype(model),
        spec=recipe.compile,
    )


def hf_stage(model: ModelFacts, scheme: QuantScheme) -> BackendStage:
    """The folder of the PyTorch backend, which compiles nothing."""
    params = hf_quantized_params(scheme)
    size = _checkpoint_bytes(model, None, scheme=scheme)
    return BackendStage(
        kind="checkpoint",
        entry=HF_ENTRY,
        salt=HF_SALT,
        params=params,
        inputs={"checkpoint": "weights"},
        distributions=CHECKPOINT_TOOLS,
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
    """Image of a container: the user's, else the release's own; empty without one."""
    given = host.places.get("image")
    if given:
        return given
    release = target.release
    return image_uri(release.tag, _REGION) if release.tag else release.image


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
    wide = 4 if float_dtype(model) == "float32" else 2
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
