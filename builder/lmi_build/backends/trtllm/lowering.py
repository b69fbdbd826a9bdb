"""Everything an engine's bytes depend on, as the parameters of its stage."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.arguments import Build, builds
from lmi_build.backends.trtllm.bounds import Terms, lower_bounds
from lmi_build.backends.trtllm.conversion import Conversion, lower_conversion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.trtllm.algorithms import Algorithm
    from lmi_build.backends.trtllm.models import TrtllmModel
    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.releases import Release
    from lmi_build.digest import JSONValue
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelGeometry
    from lmi_build.values.recipe import CompileSpec

_GIB = 1024**3
# Rules of thumb, not measured: the builder holds a rank's weights on the GPU once with
# room for the workspace of the kernels it tries, and on the host as read, as the
# network has them and as the engine stores them.
_GPU_WEIGHTS, _GPU_WORKSPACE_BYTES = 1.25, 2 * _GIB
_HOST_WEIGHTS, _HOST_BASE_BYTES = 3, 4 * _GIB
_DISK_WEIGHTS, _DISK_BASE_BYTES = 1.1, _GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePlan:
    """
    One engine, down to the words of its commands.

    Args:
        release: Row of the catalogue.
        trtllm: Version of TensorRT-LLM.
        tensorrt: Version of TensorRT; empty where the catalogue does not know it.
        flags: Row of the options of `trtllm-build`.
        device: GPU of the machine that will serve it, such as `A10G`.
        compute_capability: Of that GPU.
        dtype: Of what is not quantized.
        tensor_parallel_size: Ranks that a layer is split over.
        pipeline_parallel_size: Ranks that the layers are split over.
        quant_algo: What the engine must say it is; empty for float.
        kv_cache_quant_algo: The same of the key-value cache.
        bounds: What was lowered, for the manifest and `serving.properties`.
        builds: Calls of `trtllm-build`.
        conversion: Call of NVIDIA's converter before, or None.
    """

    release: str
    trtllm: str
    tensorrt: str
    flags: str
    device: str
    compute_capability: str
    dtype: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    quant_algo: str
    kv_cache_quant_algo: str
    bounds: Mapping[str, JSONValue]
    builds: tuple[Build, ...]
    conversion: Conversion | None = None

    @property
    def num_ranks(self) -> int:
        """Processes that serve the engine together."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def to_json(self) -> dict[str, JSONValue]:
        """The plan as parameters of a stage."""
        plain = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in {"bounds", "builds", "conversion"}
        }
        return {
            **plain,
            "bounds": dict(self.bounds),
            "builds": [build.to_json() for build in self.builds],
            "conversion": self.conversion.to_json() if self.conversion else None,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> EnginePlan:
        """
        Read what `to_json` gave.

        Raises:
            TypeError: It has other fields.
            KeyError: A part lacks a field.
        """
        made = [
            Build(**{**build, "arguments": tuple(build["arguments"])})
            for build in document["builds"]
        ]
        call = document["conversion"]
        conversion = (
            Conversion(**{**call, "arguments": tuple(call["arguments"])})
            if call
            else None
        )
        return cls(**{**document, "builds": tuple(made), "conversion": conversion})


def lower_engine(
    bounds: Bounds,
    geometry: ModelGeometry,
    *,
    model: TrtllmModel,
    algorithm: Algorithm,
    release: Release,
    instance: Instance,
    dtype: str,
    spec: CompileSpec,
) -> EnginePlan:
    """
    A recipe's engine; the problem functions of each part found nothing.

    Args:
        bounds: The recipe's bounds.
        geometry: The model's sizes.
        model: What TensorRT-LLM has for the architecture.
        algorithm: How the checkpoint is quantized.
        release: The release that will serve.
        instance: The machine that will serve.
        dtype: Of what is not quantized, such as `bfloat16`.
        spec: Ranks and options.

    Raises:
        KeyError: The release builds no engines.
    """
    terms = terms_of(release, model, algorithm, spec.options)
    engine = lower_bounds(bounds, terms)
    conversion = None
    if algorithm.writer == "nvidia":
        conversion = lower_conversion(
            model,
            algorithm,
            release,
            geometry,
            dtype=dtype,
            tensor_parallel_size=spec.tensor_parallel_size,
            pipeline_parallel_size=spec.pipeline_parallel_size,
        )
    return EnginePlan(
        release=release.name,
        trtllm=release.trtllm,
        tensorrt=release.tensorrt,
        flags=release.flags,
        device=instance.device,
        compute_capability=instance.compute_capability,
        dtype=dtype,
        tensor_parallel_size=spec.tensor_parallel_size,
        pipeline_parallel_size=spec.pipeline_parallel_size,
        quant_algo=algorithm.quant_algo,
        kv_cache_quant_algo=algorithm.kv_cache_quant_algo,
        bounds=engine.to_json(),
        builds=builds(engine, terms, dtype=dtype, moe=_has_experts(model)),
        conversion=conversion,
    )


def terms_of(
    release: Release,
    model: TrtllmModel,
    algorithm: Algorithm,
    options: Mapping[str, JSONValue],
) -> Terms:
    """
    What decides how bounds are lowered.

    Args:
        release: The release.
        model: The architecture.
        algorithm: How the checkpoint is quantized.
        options: `compile.options`.
    """
    return Terms(
        flags=release.flags,
        options=options,
        kv_cache_dtype=algorithm.kv_cache_quant_algo.lower() or "auto",
        weights_fp8=algorithm.quant_algo.startswith("FP8"),
        encoder=model.encoder,
    )


def expected_files(plan: EnginePlan) -> tuple[str, ...]:
    """What a finished engine folder holds at least, sorted."""
    names = ["config.json", *(f"rank{rank}.engine" for rank in range(plan.num_ranks))]
    names.append("engine.json")
    found = [
        f"{build.engine}/{name}" if build.engine else name
        for build in plan.builds
        for name in names
    ]
    return tuple(sorted(found))


def engine_needs(
    checkpoint_bytes: int, num_ranks: int, *, writes_checkpoint: bool = False
) -> dict[str, int]:
    """
    What a build takes, for the estimate, the preflight and the number of workers.

    Args:
        checkpoint_bytes: All ranks of the checkpoint together.
        num_ranks: How many ranks there are.
        writes_checkpoint: The checkpoint is converted in the same stage.

    Returns:
        `gpu_bytes` and `host_bytes` of one rank at a time, and `disk_bytes` of all.
    """
    rank = checkpoint_bytes / num_ranks
    copies = _DISK_WEIGHTS + (1 if writes_checkpoint else 0)
    return {
        "gpu_bytes": int(rank * _GPU_WEIGHTS) + _GPU_WORKSPACE_BYTES,
        "host_bytes": int(rank * _HOST_WEIGHTS) + _HOST_BASE_BYTES,
        "disk_bytes": int(checkpoint_bytes * copies) + _DISK_BASE_BYTES,
    }


def _has_experts(model: TrtllmModel) -> bool:
    return bool(model.names.get("router"))
