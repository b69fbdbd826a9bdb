"""Releases of TensorRT-LLM and of the LMI images that carry it, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - the rows' hints are read
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.catalog.tables import newest_published, read_named_rows

if TYPE_CHECKING:
    from lmi_build.catalog.tables import Words

FILE = "releases.toml"
CONTAINERS = ("djl-tensorrtllm", "tensorrt-llm")
LAYOUTS = ("triton", "engine", "")
BUILDERS = ("toolkit", "llmapi", "trtllm-build")
ARTIFACTS = ("engine", "hf-quantized")
# Our names of what an artifact promises, for which a release may have a key.
BOUNDS = (
    "max_input_len",
    "max_output_len",
    "max_seq_len",
    "max_batch_size",
    "max_num_tokens",
    "max_beam_width",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "dtype",
    "quantization",
    "kv_cache_fraction",
    "kv_cache_reuse",
    "chunked_context",
    "attention_window",
    "backend",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """
    What one image, or one release of TensorRT-LLM without an image, can build and load.

    Args:
        name: `djl-tensorrtllm-0.33.0`, or `tensorrt-llm-1.0.0` where no LMI image is.
        container: One of `CONTAINERS`.
        lmi: Version of the LMI image; empty without one.
        tag: Its tag in the registry; empty where none was published.
        image: Image of TensorRT-LLM's makers with this release alone; empty where there
            is none.
        published: The image can be pulled, or the release can be installed.
        trtllm: Version of TensorRT-LLM.
        tensorrt: Version of TensorRT.
        cuda: Version of CUDA.
        python: Version of Python.
        layout: Which folder the image takes for compiled: `triton` (a model repository
            for Triton), `engine` (an engine folder of the LLM API) or empty for none.
        builder: What compiles: `toolkit` or `llmapi` in the image, or `trtllm-build`.
        artifacts: What this release loads of the kinds this project builds.
        compute_capabilities: Of the GPUs its support matrix names, newest first; 7.0
            was called experimental and is left out.
        flags: Row of `trtllm_flags.toml` with the options of its `trtllm-build`; empty
            where it has none that reads the unified checkpoint.
        properties: Keys of `serving.properties` that the image reads, without
            `option.`, by our name of what they mean (one of `BOUNDS`). What is absent
            the image ignores or takes from the engine.
        end_of_life: What its makers said about its end.
        note: What else matters.
        source: Where it was read.
    """

    name: str
    container: str
    trtllm: str
    builder: str
    source: str
    flags: str
    artifacts: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    published: bool
    lmi: str = ""
    tag: str = ""
    image: str = ""
    tensorrt: str = ""
    cuda: str = ""
    python: str = ""
    layout: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    end_of_life: str = ""
    note: str = ""


@cache
def releases() -> Mapping[str, Release]:
    """
    Every known release by name, newest first, LMI images before bare releases.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return read_named_rows(Release, FILE, words=_words)


def release(name: str) -> Release:
    """
    One release.

    Args:
        name: As in `releases()`.

    Raises:
        KeyError: There is none of that name.
    """
    return releases()[name]


def newest(container: str = "djl-tensorrtllm") -> Release:
    """
    The newest published release of one container.

    Args:
        container: One of `CONTAINERS`.

    Raises:
        KeyError: No published release has that container.
    """
    return newest_published(releases(), container)


def _words(row: Release) -> tuple[Words, ...]:
    return (
        ("container", (row.container,), CONTAINERS),
        ("layout", (row.layout,), LAYOUTS),
        ("builder", (row.builder,), BUILDERS),
        ("artifacts", row.artifacts, ARTIFACTS),
        ("properties", tuple(row.properties), BOUNDS),
    )
