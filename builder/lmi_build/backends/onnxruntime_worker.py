"""Compiles a checkpoint to an ONNX Runtime GenAI engine, in a worker process."""

from __future__ import annotations

import json
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.backends.checkpoint_config import read_checkpoint_config
from lmi_build.errors import SourceInvalid, StageFailed, Unsupported
from lmi_build.events import StageNote, StageProgress
from lmi_build.text import join_words
from lmi_build.values.quant import COMPRESSED_TENSORS, QuantScheme

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from lmi_build.backends.onnxruntime_builder import BuilderHooks
    from lmi_build.backends.onnxruntime_weights import CheckpointTensors
    from lmi_build.events import Emit
    from lmi_build.spi import Job

# What a checkpoint without `quantization_config` is; only its packing is looked at.
FLOAT = QuantScheme(
    weight_bits=16,
    weight_dtype="float",
    group_size=-1,
    sym=True,
    activation_bits=16,
    packing="none",
)

GENAI_CONFIG = "genai_config.json"
# 8-bit products have a fast kernel only with int8 activations: with float ones the
# head of SmolLM2 alone took 120 ms a token instead of 2.
HEAD_ACCURACY = 4
OFFLINE = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    # Bars redraw one line; a log file would get thousands.
    "TQDM_DISABLE",
)
# Decoders whose tokens stand for bytes, see `TokenBytes` of the handler.
DECODERS = ("ByteLevel", "ByteFallback")
ENGINE_FILES = ("model.onnx", "model.onnx.data", GENAI_CONFIG, "tokenizer.json")


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out` with an engine folder.

    Raises:
        SourceInvalid: The checkpoint is broken or incomplete (`compile.*`).
        Unsupported: It holds what the engine cannot say exactly.
        StageFailed: The builder failed.
    """
    _go_offline()
    # Heavy from here on: torch, transformers and the builder.
    from lmi_build.backends.onnxruntime_builder import build_graph
    from lmi_build.backends.onnxruntime_weights import (
        CheckpointTensors,
        QuantizedWeights,
    )

    checkpoint = job.inputs["checkpoint"]
    config = read_checkpoint_config(checkpoint)
    _check_decoder(checkpoint / "tokenizer.json")
    scheme = _scheme_of(config)
    tensors = CheckpointTensors(checkpoint)
    num_layers = _number(job, "num_layers")
    with tempfile.TemporaryDirectory(dir=job.state) as scratch:
        build_graph(
            _shown_to_builder(checkpoint, config, scheme, Path(scratch) / "shown"),
            job.out,
            Path(scratch) / "cache",
            provider=str(job.params.get("provider", "cpu")),
            accuracy_level=_number(job, "accuracy_level"),
            fuse_qkv=QuantizedWeights.can_fuse_qkv(tensors, scheme, num_layers),
            hooks=_hooks(job, emit, tensors, scheme),
        )
    tensors.close()
    _tell_scheme(job, emit, scheme)
    _write_bounds(job.out / GENAI_CONFIG, job.params)
    _portable_tokenizer(job.out / "tokenizer_config.json")
    _check_complete(job.out, (str(checkpoint), str(job.out), str(job.state)))


def _number(job: Job, name: str) -> int:
    return int(job.params[name])  # type: ignore[arg-type]


def _hooks(
    job: Job, emit: Emit, tensors: CheckpointTensors, scheme: QuantScheme
) -> BuilderHooks:
    """What the builder asks us while it writes the graph."""
    from lmi_build.backends.onnxruntime_builder import BuilderHooks
    from lmi_build.backends.onnxruntime_corrections import adapt_config, correct
    from lmi_build.backends.onnxruntime_weights import QuantizedWeights

    num_layers = _number(job, "num_layers")
    input_scales: dict[str, float] = {}

    def load_quantized(count: int) -> QuantizedWeights:
        return QuantizedWeights(
            tensors,
            scheme,
            num_layers=count,
            widest_block=_number(job, "block_size"),
            input_scales=input_scales,
        )

    def on_layer(done: int) -> None:
        emit(StageProgress(stage=job.stage, done=done, total=num_layers, unit="layers"))

    return BuilderHooks(
        load_quantized=load_quantized,
        finish_graph=lambda model: _finish_graph(model, job, emit, input_scales),
        stamp=_stamp,
        on_layer=on_layer,
        adapt_config=lambda config: adapt_config(config, _number(job, "max_seq_len")),
        correct=correct,
    )


def _scheme_of(config: Mapping[str, Any]) -> QuantScheme:
    from lmi_build.checkpoint.formats.config_reader import read_scheme

    quantization = config.get("quantization_config")
    return FLOAT if quantization is None else read_scheme(quantization)


def _shown_to_builder(
    checkpoint: Path, config: Mapping[str, Any], scheme: QuantScheme, folder: Path
) -> Path:
    """
    The checkpoint as the builder will take it.

    It refuses compressed-tensors on CPUs by the name alone. Our own reader takes its
    place, so the builder only has to know that there are quantized layers: it is given
    the same files with a `quantization_config` that it knows.
    """
    if scheme.packing not in COMPRESSED_TENSORS:
        return checkpoint
    folder.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path.resolve())
    quantization = {"quant_method": "gptq", "bits": scheme.weight_bits}
    text = json.dumps({**config, "quantization_config": quantization})
    (folder / "config.json").write_text(text, "utf-8")
    return folder


def _tell_scheme(job: Job, emit: Emit, scheme: QuantScheme) -> None:
    """Say where the engine computes otherwise than the checkpoint means."""
    if scheme.weight_dtype == "float" and scheme.packing != "none":
        _note(
            job,
            emit,
            "compile.float8",
            "no kernel for CPUs multiplies fp8: its weights are stored as float32, each"
            " number as it is, and activations stay float32",
            level="warning",
        )
    elif _integer_products(job):
        static = scheme.activation_scheme == "static"
        step = "the stored step of each layer" if static else "one step per token"
        _note(
            job,
            emit,
            "compile.activations",
            f"8-bit products are of integers, with {step}, as the checkpoint means",
        )
    elif scheme.activation_scheme != "none":
        block = _number(job, "block_size")
        level = _number(job, "accuracy_level")
        how = (
            f"rounds them to 8 bits in blocks of at most {block} channels, with scales"
            " of its own"
            if level == HEAD_ACCURACY
            else f"leaves them in float32 (`accuracy_level: {level}`)"
        )
        _note(
            job,
            emit,
            "compile.activations",
            f"the checkpoint means {scheme.activation_scheme} 8-bit activations; the"
            f" engine {how}",
        )
    if scheme.kv_cache_dtype != "auto":
        _note(
            job,
            emit,
            "compile.kv-cache",
            f"the checkpoint means a key-value cache in {scheme.kv_cache_dtype}; the"
            " engine's stays float32, and its scales are not used",
            level="warning",
        )


def _integer_products(job: Job) -> bool:
    return job.params.get("products") == "integer"


def _go_offline() -> None:
    """Libraries imported later read these once; a stage never uses the network."""
    for name in OFFLINE:
        os.environ[name] = "1"


def _check_decoder(path: Path) -> None:
    """Refuse a tokenizer whose tokens the handler cannot turn into bytes."""
    try:
        decoder = json.loads(path.read_bytes()).get("decoder") or {}
    except (ValueError, AttributeError) as error:
        raise SourceInvalid(
            f"the checkpoint's {path.name} cannot be read: {error}",
            code="compile.checkpoint-broken",
            hints=("run `lmi-build cache verify`, then build again",),
        ) from error
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else []
    kinds = {str(step.get("type")) for step in [decoder, *steps]}
    if not kinds & set(DECODERS):
        raise Unsupported(
            f"the tokenizer's decoder is {join_words(sorted(kinds))}",
            code="compile.tokenizer-unsupported",
            hints=(f"use a model whose tokenizer has {join_words(DECODERS)}",),
        )


def _finish_graph(
    model: ir.Model, job: Job, emit: Emit, input_scales: Mapping[str, float]
) -> None:
    from lmi_build.backends.onnxruntime_graph import (
        HEAD_NODE,
        drop_plain_zeros,
        narrow_embedding,
        nodes_named,
        quantize_head,
        reorder_inputs,
        set_qkv_accuracy,
    )
    from lmi_build.backends.onnxruntime_integer import use_integer_products
    from lmi_build.backends.onnxruntime_joined import join_products

    reordered = reorder_inputs(model)
    drop_plain_zeros(model)
    if _integer_products(job):
        use_integer_products(model, input_scales)
    set_qkv_accuracy(model, _number(job, "qkv_accuracy_level"))
    if job.params.get("provider") == "cuda":
        _note(
            job,
            emit,
            "compile.float16",
            "the engine computes in float16: scales, norms and float weights are"
            " rounded to it, packed weights are not",
        )
    else:
        join_products(model)
        dtype = narrow_embedding(model)
        _note(job, emit, "compile.embedding", f"embedding stored as {dtype}, exactly")
    if reordered:
        _note(
            job,
            emit,
            "compile.activation-order",
            f"{reordered} layers have channels in activation order; their inputs are"
            " reordered while serving",
        )
    if job.params["lm_head_dtype"] != "int8":
        return
    if not nodes_named(model.graph, HEAD_NODE):
        _note(
            job,
            emit,
            "compile.head-already-quantized",
            "the checkpoint's lm_head is quantized already and taken as it is;"
            " `lm_head_dtype: int8` changes nothing",
            level="warning",
        )
        return
    block_size = _number(job, "lm_head_block_size")
    quantize_head(model, block_size=block_size, accuracy_level=HEAD_ACCURACY)
    _note(
        job,
        emit,
        "compile.head",
        f"lm_head rounded to 8 bits in blocks of {block_size}, as the recipe says",
    )


def _note(
    job: Job, emit: Emit, code: str, message: str, *, level: str = "info"
) -> None:
    emit(StageNote(stage=job.stage, level=level, code=code, message=message))


def _stamp(model: ir.Model) -> None:
    from lmi_build.backends.onnxruntime_graph import scrub

    scrub(
        model,
        producer="onnxruntime-genai",
        version=metadata.version("onnxruntime-genai"),
    )


def _write_bounds(path: Path, params: Mapping[str, Any]) -> None:
    config = json.loads(path.read_bytes())
    length = int(params["max_seq_len"])
    config["model"]["context_length"] = length
    search = config["search"]
    search["max_length"] = length
    search["num_beams"] = 1
    search["num_return_sequences"] = 1
    search["past_present_share_buffer"] = True
    options = config["model"]["decoder"]["session_options"]
    if params.get("products") == "integer":
        from lmi_build.backends.onnxruntime_integer import SESSION_OPTIONS

        options |= SESSION_OPTIONS
    if params["intra_op_num_threads"]:
        options["intra_op_num_threads"] = int(params["intra_op_num_threads"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _portable_tokenizer(path: Path) -> None:
    """Drop what transformers notes about the folder it was loaded from."""
    config = json.loads(path.read_bytes())
    for key in ("name_or_path", "is_local", "local_files_only", "model_max_length"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _check_complete(out: Path, machine_paths: tuple[str, ...]) -> None:
    missing = [name for name in ENGINE_FILES if not (out / name).is_file()]
    if missing:
        raise StageFailed(
            f"the model builder wrote no `{missing[0]}`",
            code="compile.engine-incomplete",
            hints=("install onnxruntime-genai 0.18",),
        )
    for file in sorted(out.rglob("*")):
        if not file.is_file() or file.name == "model.onnx.data":
            continue
        data = file.read_bytes()
        if any(place.encode() in data for place in machine_paths):
            raise StageFailed(
                f"`{file.name}` holds a path of this machine",
                code="compile.engine-not-portable",
                hints=("report it: the same build elsewhere gives other bytes",),
            )
