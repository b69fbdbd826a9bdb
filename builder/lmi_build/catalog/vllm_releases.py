"""LMI images that serve Hugging Face folders on GPUs, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - the rows' hints are read
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.catalog.tables import newest_published, read_named_rows

if TYPE_CHECKING:
    from lmi_build.catalog.tables import Words

FILE = "vllm_releases.toml"
HANDLER_FILE = "vllm_handlers.toml"
CONTAINERS = ("djl-lmi", "djl-deepspeed")
# What `serve.rolling_batch` of a recipe says; `auto` is the newest handler of vLLM.
SCHEDULERS = ("auto", "vllm", "lmi-dist", "scheduler", "disable", "deepspeed")
LIBRARIES = ("vllm", "transformers", "deepspeed")
# Our names of what a folder promises and of what its server may be told.
SETTINGS = (
    "max_seq_len",
    "max_batch_size",
    "max_num_tokens",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "dtype",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "enforce_eager",
    "enable_prefix_caching",
    "enable_chunked_prefill",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Handler:
    """
    How one of LMI's handlers is told what to serve.

    Args:
        name: Its row.
        scheduler: One of `SCHEDULERS`: what a recipe calls it.
        entry_point: Its Python module.
        rolling_batch: Value of `option.rolling_batch`.
        source: Where it was read.
        keys: Properties it reads, without `option.`, by our name (`SETTINGS`). What is
            absent it does not read.
        server_keys: The same for properties of the front end, without any prefix.
        engine: Value of `engine`.
        library: What computes: one of `LIBRARIES`.
        further: Properties that it needs beside, without `option.`.
        spread: The same where several devices share a model.
        passes_on: Properties it does not know become arguments of vLLM.
        drops_false: A property that is `false` reaches vLLM only where vLLM asks for a
            word; an option that is on by default stays on.
        pipeline_parallel: Layers may be split over devices.
        fixed_num_seqs: Requests that vLLM schedules whatever the folder says; 0 where
            the handler passes the number on.
        beside: Architectures that it serves without vLLM's models, in float alone.
    """

    name: str
    scheduler: str
    entry_point: str
    rolling_batch: str
    source: str
    keys: Mapping[str, str]
    server_keys: Mapping[str, str] = field(default_factory=dict)
    engine: str = "Python"
    library: str = "vllm"
    further: Mapping[str, str] = field(default_factory=dict)
    spread: Mapping[str, str] = field(default_factory=dict)
    passes_on: bool = False
    drops_false: bool = False
    pipeline_parallel: bool = False
    fixed_num_seqs: int = 0
    beside: tuple[str, ...] = ()

    def reads(self, setting: str) -> bool:
        """Whether it, or the front end for it, reads one of `SETTINGS`."""
        return setting in self.keys or setting in self.server_keys


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmRelease:
    """
    One image.

    Args:
        name: `djl-lmi-0.36.0`.
        container: One of `CONTAINERS`.
        lmi: Version of DJL Serving in it.
        tag: Its tag in the registry.
        published: Whether it can be pulled.
        transformers: Newest version that its requirements allow.
        cuda: Version of CUDA.
        handlers: Rows of the handlers it has, the one that `auto` means first.
        auto: Row of the handler that the front end takes for a text generator where
            `option.rolling_batch` is `auto` or absent.
        source: Where versions and handlers were read.
        image_version: Version of the LMI image, such as `27.0.0`.
        vllm: Version of vLLM; empty without it.
        lmi_dist: Version of vLLM that its LMI-Dist computes with; empty without it.
        deepspeed: Version of DeepSpeed; empty without it.
        end_of_life: What its makers said about its end.
        note: What else matters.
    """

    name: str
    container: str
    lmi: str
    tag: str
    published: bool
    transformers: str
    cuda: str
    handlers: tuple[str, ...]
    auto: str
    source: str
    image_version: str = ""
    vllm: str = ""
    lmi_dist: str = ""
    deepspeed: str = ""
    end_of_life: str = ""
    note: str = ""

    def handler(self, scheduler: str) -> Handler | None:
        """
        The handler that a recipe means, or None where the image has none such.

        Args:
            scheduler: `serve.rolling_batch`.
        """
        rows = [vllm_handlers()[name] for name in self.handlers]
        if scheduler == "auto":
            return rows[0]
        return next((row for row in rows if row.scheduler == scheduler), None)

    def computes_with(self, handler: Handler) -> str:
        """Version of vLLM behind one handler; empty where another library computes."""
        if handler.library != "vllm":
            return ""
        return self.lmi_dist if handler.scheduler == "lmi-dist" else self.vllm


@cache
def vllm_handlers() -> Mapping[str, Handler]:
    """
    Every handler by its row.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return read_named_rows(Handler, HANDLER_FILE, words=_handler_words)


@cache
def vllm_releases() -> Mapping[str, VllmRelease]:
    """
    Every image by name, newest first.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return read_named_rows(VllmRelease, FILE, words=_words)


def newest_vllm(container: str = "djl-lmi") -> VllmRelease:
    """
    The newest published image.

    Args:
        container: One of `CONTAINERS`.

    Raises:
        KeyError: No published image is of that container.
    """
    return newest_published(vllm_releases(), container)


def _handler_words(row: Handler) -> tuple[Words, ...]:
    return (
        ("scheduler", (row.scheduler,), SCHEDULERS),
        ("library", (row.library,), LIBRARIES),
        ("keys", tuple(row.keys), SETTINGS),
        ("server_keys", tuple(row.server_keys), SETTINGS),
    )


def _words(row: VllmRelease) -> tuple[Words, ...]:
    return (
        ("container", (row.container,), CONTAINERS),
        ("handlers", row.handlers, tuple(vllm_handlers())),
        ("auto", (row.auto,), row.handlers),
    )
