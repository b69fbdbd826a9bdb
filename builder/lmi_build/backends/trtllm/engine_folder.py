"""What an engine folder, or the checkpoint one is built from, says about itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import read_object, unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder

CONFIG_NAME = "config.json"
# What stands for an engine that was not built.
REHEARSAL = "rehearsal.json"
# What this project records beside an engine that it built.
RECORD_NAME = "engine.json"
# `trtllm-build` names a rank's file so.
_RANK = re.compile(r"rank(0|[1-9][0-9]{0,4})\.engine\Z")
# Model, dtype, tensor and pipeline ranks, then the rank: the name that `build.py` of
# TensorRT-LLM up to 0.7 gave it (examples/llama/build.py, `get_engine_name`).
_OLD_RANK = re.compile(
    r".+_[a-z0-9]+_tp[0-9]{1,5}(?:_pp[0-9]{1,5})?_rank(0|[1-9][0-9]{0,4})\.engine\Z"
)
_SHARD = re.compile(r"rank(0|[1-9][0-9]{0,4})\.safetensors\Z")
_BOUNDS = (
    "max_input_len",
    "max_output_len",
    "max_seq_len",
    "max_batch_size",
    "max_num_tokens",
    "max_beam_width",
)
_MAX_INT32 = 2**31 - 1
_MAX_RANKS = 1 << 15


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltOn:
    """
    The machine that an engine was built on, as this project records it.

    Args:
        gpu: Name of the GPU.
        compute_capability: Of that GPU, such as `8.6`.
        tensorrt: Version of TensorRT.
    """

    gpu: str
    compute_capability: str
    tensorrt: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFolder:
    """
    An engine as its folder describes it; what it does not say is None.

    Args:
        spelling: `build_config` (TensorRT-LLM 0.8 and later) or `builder_config`.
        version: Version of TensorRT-LLM that built it.
        architecture: Class of the model.
        dtype: Float type of what is not quantized.
        quant_algo: TensorRT-LLM's word for the quantization, empty for none.
        kv_cache_quant_algo: The same of the key-value cache.
        tensor_parallel_size: Ranks that a layer is split over.
        pipeline_parallel_size: Ranks that the layers are split over.
        vocab_size: Tokens.
        bounds: What the engine was built for, by the names of `Bounds`.
        paged_context: Whether it was built with paged context attention.
        ranks: Rank to the name of its file.
        sizes: Rank to the bytes of that file.
        built_on: Recorded beside engines that this project built.
    """

    spelling: str
    version: str | None
    architecture: str | None
    dtype: str | None
    quant_algo: str | None
    kv_cache_quant_algo: str | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    vocab_size: int | None
    bounds: Mapping[str, int]
    paged_context: bool
    ranks: Mapping[int, str]
    sizes: Mapping[int, int]
    built_on: BuiltOn | None = None

    @property
    def world_size(self) -> int:
        """Processes that serve it together."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def max_seq_len(self) -> int | None:
        """Prompt and output of one request together."""
        if "max_seq_len" in self.bounds:
            return self.bounds["max_seq_len"]
        if {"max_input_len", "max_output_len"} <= set(self.bounds):
            return self.bounds["max_input_len"] + self.bounds["max_output_len"]
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFolder:
    """
    A checkpoint that `trtllm-build` reads.

    Args:
        architecture: Class of the model.
        dtype: Float type of what is not quantized.
        quant_algo: TensorRT-LLM's word for the quantization, empty for none.
        kv_cache_quant_algo: The same of the key-value cache.
        tensor_parallel_size: Ranks that a layer is split over.
        pipeline_parallel_size: Ranks that the layers are split over.
        ranks: Rank to the name of its file.
        sizes: Rank to the bytes of that file.
    """

    architecture: str
    dtype: str
    quant_algo: str
    kv_cache_quant_algo: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    ranks: Mapping[int, str] = field(default_factory=dict)
    sizes: Mapping[int, int] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        """Ranks it is split into."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


def read_engine_folder(folder: Folder) -> EngineFolder:
    """
    Read what an engine folder says about itself; no engine is opened.

    Args:
        folder: The folder that holds `config.json` and the ranks.

    Raises:
        VerifyFailed: `engine.unreadable`, when `config.json` is missing or is not
            the configuration of an engine, or says something absurd.

    Source:
        TensorRT-LLM `builder.py`: `Engine.save` and `EngineConfig` (0.8 and later),
        `Builder.save_config` (up to 0.7).
    """
    config = read_object(folder, CONFIG_NAME)
    reader = _Reader(folder)
    if "build_config" in config:
        return _read_current(reader, config)
    if "builder_config" in config:
        return _read_old(reader, config)
    raise unreadable(
        folder,
        CONFIG_NAME,
        "it has neither `build_config` nor `builder_config`, so it is not an engine's",
    )


def read_checkpoint_folder(folder: Folder) -> CheckpointFolder:
    """
    Read what a checkpoint says about itself; no tensor is read.

    Args:
        folder: The folder that holds `config.json` and the ranks.

    Raises:
        VerifyFailed: `engine.unreadable`, when `config.json` is missing or is not
            the configuration of a checkpoint, or says something absurd.

    Source:
        TensorRT-LLM docs/source/architecture/checkpoint.md at 0.16.
    """
    config = read_object(folder, CONFIG_NAME)
    reader = _Reader(folder)
    for name in ("architecture", "dtype"):
        if not isinstance(config.get(name), str):
            raise reader.wrong(f"`{name}` is missing, so it is not a checkpoint's")
    quantization = reader.table(config, "quantization")
    mapping = reader.table(config, "mapping")
    ranks = reader.ranks(_SHARD)
    return CheckpointFolder(
        architecture=config["architecture"],
        dtype=config["dtype"],
        quant_algo=reader.algorithm(quantization, "quant_algo"),
        kv_cache_quant_algo=reader.algorithm(quantization, "kv_cache_quant_algo"),
        tensor_parallel_size=reader.degree(mapping, "tp_size"),
        pipeline_parallel_size=reader.degree(mapping, "pp_size"),
        ranks=ranks,
        sizes={rank: folder.sizes[name] for rank, name in ranks.items()},
    )


def _read_current(reader: _Reader, config: Mapping[str, Any]) -> EngineFolder:
    model = reader.table(config, "pretrained_config", required=True)
    build = reader.table(config, "build_config", required=True)
    quantization = reader.table(model, "quantization")
    mapping = reader.table(model, "mapping")
    plugins = reader.table(build, "plugin_config")
    ranks = reader.ranks(_RANK)
    return EngineFolder(
        spelling="build_config",
        version=reader.text(config, "version"),
        architecture=reader.text(model, "architecture"),
        dtype=reader.text(model, "dtype"),
        quant_algo=reader.algorithm(quantization, "quant_algo"),
        kv_cache_quant_algo=reader.algorithm(quantization, "kv_cache_quant_algo"),
        tensor_parallel_size=reader.degree(mapping, "tp_size"),
        pipeline_parallel_size=reader.degree(mapping, "pp_size"),
        vocab_size=reader.whole(model, "vocab_size"),
        bounds=reader.bounds(build),
        paged_context=plugins.get("use_paged_context_fmha") is True,
        ranks=ranks,
        sizes={rank: reader.folder.sizes[name] for rank, name in ranks.items()},
        built_on=_read_record(reader.folder),
    )


def _read_old(reader: _Reader, config: Mapping[str, Any]) -> EngineFolder:
    build = reader.table(config, "builder_config", required=True)
    plugins = reader.table(config, "plugin_config")
    ranks = reader.ranks(_OLD_RANK)
    return EngineFolder(
        spelling="builder_config",
        version=None,
        architecture=reader.text(build, "name"),
        dtype=reader.text(build, "precision"),
        # Quantization is a set of bits there, which changed between versions.
        quant_algo=None,
        kv_cache_quant_algo=None,
        tensor_parallel_size=reader.degree(build, "tensor_parallel"),
        pipeline_parallel_size=reader.degree(build, "pipeline_parallel"),
        vocab_size=reader.whole(build, "vocab_size"),
        bounds=reader.bounds(build),
        paged_context=plugins.get("use_paged_context_fmha") is True,
        ranks=ranks,
        sizes={rank: reader.folder.sizes[name] for rank, name in ranks.items()},
        built_on=_read_record(reader.folder),
    )


def _read_record(folder: Folder) -> BuiltOn | None:
    if not folder.has(RECORD_NAME):
        return None
    record = read_object(folder, RECORD_NAME)
    values = [record.get(name) for name in ("gpu", "compute_capability", "tensorrt")]
    if not all(isinstance(value, str) for value in values):
        raise unreadable(
            folder,
            RECORD_NAME,
            "`gpu`, `compute_capability` and `tensorrt` must be texts",
        )
    return BuiltOn(
        gpu=record["gpu"],
        compute_capability=record["compute_capability"],
        tensorrt=record["tensorrt"],
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes values out of a configuration that may say anything."""

    folder: Folder

    def wrong(self, reason: str) -> Exception:
        return unreadable(self.folder, CONFIG_NAME, reason)

    def table(
        self, config: Mapping[str, Any], name: str, *, required: bool = False
    ) -> Mapping[str, Any]:
        value = config.get(name)
        if value is None and not required:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(f"`{name}` is {_shown(value)}, not an object")
        return value

    def text(self, config: Mapping[str, Any], name: str) -> str | None:
        value = config.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self.wrong(f"`{name}` is {_shown(value)}, not a text")

    def algorithm(self, config: Mapping[str, Any], name: str) -> str:
        """A quantization, empty for none, whichever way none is spelt."""
        value = self.text(config, name)
        return "" if value in {None, "NO_QUANT"} else value or ""

    def whole(self, config: Mapping[str, Any], name: str) -> int | None:
        value = config.get(name)
        if value is None:
            return None
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 <= value <= _MAX_INT32:
            raise self.wrong(f"`{name}` is {_shown(value)}, not a count")
        return int(value)

    def degree(self, config: Mapping[str, Any], name: str) -> int:
        value = self.whole(config, name)
        value = 1 if value is None else value
        if not 1 <= value <= _MAX_RANKS:
            raise self.wrong(f"`{name}` is {value}, not a number of ranks")
        return value

    def bounds(self, config: Mapping[str, Any]) -> dict[str, int]:
        found = {name: self.whole(config, name) for name in _BOUNDS}
        return {name: value for name, value in found.items() if value is not None}

    def ranks(self, pattern: re.Pattern[str]) -> dict[int, str]:
        found: dict[int, str] = {}
        for name in self.folder.names():
            match = pattern.match(name)
            if match is None:
                continue
            rank = int(match.group(1))
            if rank in found:
                raise unreadable(
                    self.folder, name, f"`{found[rank]}` is of rank {rank} as well"
                )
            found[rank] = name
        return found


def _shown(value: object) -> str:
    """A foreign value, short enough for a message."""
    text = repr(value)
    limit = 40
    return text if len(text) <= limit else f"{text[:limit]}..."
