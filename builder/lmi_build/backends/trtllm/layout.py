"""Which file of an artifact lies where, for each release's layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.models import version_key
from lmi_build.backends.trtllm.triton_config import (
    CONFIG_NAME,
    TritonModel,
    config_pbtxt,
    scheduler_is_overruled,
)
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.bounds import EngineBounds
    from lmi_build.catalog.releases import Release

KINDS = ("engine", "hf-quantized", "checkpoint")
# The Triton backend runs an encoder beside a decoder from here on.
_ENCODERS_SINCE = (0, 11)
# Where SageMaker puts the model's files.
MOUNT = "/opt/ml/model"
REPOSITORY = "tensorrt_llm"
# Triton's folder of the model's first version, the only one.
_VERSION_DIR = f"{REPOSITORY}/1"
_ENGINE_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """
    Where the parts of an artifact lie, as folders relative to it; `.` is its root.

    Args:
        engine_dir: The engine's, the checkpoint's or the model's own files.
        tokenizer_dir: The tokenizer's files.
        model_files: Further files of the model beside the tokenizer, by name.
        files: Small texts, by path.
        ranks: The engine's or checkpoint's rank files, by path.
        parts: Folders of the engine's parts inside `engine_dir`, each with a slash at
            its end; one empty name where the engine is whole.
    """

    engine_dir: str
    tokenizer_dir: str
    model_files: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    ranks: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("",)

    def expected(self) -> tuple[str, ...]:
        """What must lie there after a build, beside the tokenizer, sorted."""
        at = "" if self.engine_dir == "." else f"{self.engine_dir}/"
        configs = {f"{at}{part}{_ENGINE_CONFIG}" for part in self.parts}
        return tuple(sorted({*configs, *self.files, *self.ranks}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """
    What decides where files lie and what their texts say.

    Args:
        kind: One of `KINDS`.
        bounds: The numbers that the engine is built for.
        tensor_parallel_size: Ranks that a layer is split over.
        pipeline_parallel_size: Ranks that the layers are split over.
        kv_cache_fraction: Part of the free GPU memory for the key-value cache.
        kv_cache_reuse: Blocks of equal prompts are used again.
        scheduler: `guaranteed_no_evict` (no request is interrupted) or
            `max_utilization`.
        encoder: The engine has two parts, an encoder and a decoder.
        attention_window: Tokens that a block attends to; 0 for all.
    """

    kind: str
    bounds: EngineBounds
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    kv_cache_fraction: float = 0.9
    kv_cache_reuse: bool = False
    scheduler: str = "guaranteed_no_evict"
    encoder: bool = False
    attention_window: int = 0

    @property
    def world_size(self) -> int:
        """Ranks of the engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


def artifact_layout(release: Release, placement: Placement) -> Layout:
    """
    The layout that one release recognises.

    Args:
        release: Row of the catalogue.
        placement: What is placed.

    Raises:
        ValueError: `layout_problems` has something to say about the same arguments.
    """
    problem = next(layout_problems(release, placement), None)
    if problem is not None:
        raise ValueError(problem.message)
    if placement.kind == "engine" and release.layout == "triton":
        return _triton(release, placement)
    ranks = _ranks("", placement)
    return Layout(
        engine_dir=".",
        tokenizer_dir=".",
        # The model's own config.json would take the place of the engine's.
        model_files=("generation_config.json",),
        ranks=() if placement.kind == "hf-quantized" else ranks,
    )


def layout_problems(release: Release, placement: Placement) -> Iterator[Problem]:
    """Every reason why one release cannot serve what is placed."""
    if placement.kind not in KINDS:
        raise ValueError(f"{placement.kind!r} is none of {KINDS}")
    if placement.kind != "checkpoint" and placement.kind not in release.artifacts:
        others = [kind for kind in release.artifacts if kind in KINDS]
        yield Problem(
            code="serve.artifact-unsupported",
            message=f"{release.name} does not serve `{placement.kind}`",
            path="compile.artifact",
            hint=f"write `artifact: {others[0]}`"
            if others
            else "use `release: djl-tensorrtllm-0.33.0`",
            unsupported=True,
        )
    triton = placement.kind == "engine" and release.layout == "triton"
    served = triton and version_key(release.trtllm) >= _ENCODERS_SINCE
    if placement.encoder and placement.kind == "engine" and not served:
        yield Problem(
            code="serve.encoder-unsupported",
            message=f"{release.name} does not serve an encoder and a decoder as"
            " engines",
            path="compile.release",
            hint="use `release: djl-tensorrtllm-0.30.0`",
            unsupported=True,
        )
    chunked = placement.bounds.chunked_context
    if triton and scheduler_is_overruled(
        release.trtllm, placement.scheduler, chunked=chunked
    ):
        yield Problem(
            code="serve.scheduler-overruled",
            message=f"the backend of TensorRT-LLM {release.trtllm} takes"
            f" `guaranteed_no_evict` in place of `{placement.scheduler}`",
            path="serve.options.batch_scheduler_policy",
            hint="write `guaranteed_no_evict`, or remove the line",
            unsupported=True,
        )


def _triton(release: Release, placement: Placement) -> Layout:
    """A model repository one folder below the root, which holds no `config.json`."""
    engine = f"{MOUNT}/{_VERSION_DIR}"
    parts = ("encoder/", "decoder/") if placement.encoder else ("",)
    model = TritonModel(
        model_path=f"{engine}/decoder" if placement.encoder else engine,
        encoder_path=f"{engine}/encoder" if placement.encoder else "",
        max_batch_size=placement.bounds.max_batch_size,
        max_beam_width=placement.bounds.max_beam_width,
        kv_cache_fraction=placement.kv_cache_fraction,
        scheduler=placement.scheduler,
        kv_cache_reuse=placement.kv_cache_reuse,
        chunked_context=placement.bounds.chunked_context,
        attention_window=placement.attention_window,
    )
    return Layout(
        engine_dir=_VERSION_DIR,
        tokenizer_dir=REPOSITORY,
        model_files=("config.json", "generation_config.json"),
        files={f"{REPOSITORY}/{CONFIG_NAME}": config_pbtxt(release.trtllm, model)},
        ranks=tuple(
            rank
            for part in parts
            for rank in _ranks(f"{_VERSION_DIR}/{part}", placement)
        ),
        parts=parts,
    )


def _ranks(at: str, placement: Placement) -> tuple[str, ...]:
    suffix = "safetensors" if placement.kind == "checkpoint" else "engine"
    return tuple(f"{at}rank{rank}.{suffix}" for rank in range(placement.world_size))
