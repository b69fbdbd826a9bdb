"""Engine folders, model repositories and models, as small made-up listings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import Folder, listed_folder
from lmi_build.backends.trtllm.bounds import EngineBounds
from lmi_build.backends.trtllm.layout import Placement, artifact_layout
from lmi_build.backends.trtllm.serving_keys import serving_properties
from lmi_build.package.properties import render_properties

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.catalog.releases import Release

BOUNDS = EngineBounds(
    max_input_len=1000,
    max_output_len=500,
    max_seq_len=1500,
    max_batch_size=16,
    max_num_tokens=4096,
    opt_num_tokens=None,
    max_beam_width=1,
    paged_context_fmha=False,
    chunked_context=False,
)
TOKENIZER_CONFIG = '{"tokenizer_class": "PreTrainedTokenizerFast"}'
HF_CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def folder_of(texts: Mapping[str, str]) -> Folder:
    """A folder whose files hold these texts."""
    data = {path: text.encode() for path, text in texts.items()}
    sizes = {path: len(content) for path, content in data.items()}
    return listed_folder(sizes, lambda path: data[path], where="folder")


def engine_config(
    *, version: str = "0.21.0rc1", tp: int = 1, pp: int = 1, **changes: Any
) -> dict[str, Any]:
    """What `trtllm-build` writes; `changes` go to `build_config`."""
    return {
        "version": version,
        "pretrained_config": {
            "architecture": "LlamaForCausalLM",
            "dtype": "float16",
            "vocab_size": 32000,
            "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
            "quantization": {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None},
        },
        "build_config": {
            "max_input_len": BOUNDS.max_input_len,
            "max_seq_len": BOUNDS.max_seq_len,
            "max_batch_size": BOUNDS.max_batch_size,
            "max_num_tokens": BOUNDS.max_num_tokens,
            "max_beam_width": BOUNDS.max_beam_width,
            "plugin_config": {"use_paged_context_fmha": True},
            **changes,
        },
    }


def engine_files(config: Mapping[str, Any], *, at: str = "") -> dict[str, str]:
    """An engine's own files for its configuration."""
    mapping = config["pretrained_config"]["mapping"]
    ranks = range(mapping["tp_size"] * mapping["pp_size"])
    return {
        f"{at}config.json": json.dumps(config),
        **{f"{at}rank{rank}.engine": "engine" for rank in ranks},
    }


def placement(kind: str = "engine", *, tp: int = 1, pp: int = 1) -> Placement:
    """What the tests place."""
    return Placement(
        kind=kind,
        bounds=BOUNDS,
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
    )


def artifact_texts(
    release: Release, kind: str = "engine", *, tp: int = 1, pp: int = 1
) -> dict[str, str]:
    """A whole artifact as this project lays it out, with made-up weights."""
    placed = placement(kind, tp=tp, pp=pp)
    layout = artifact_layout(release, placed)
    at = "" if layout.engine_dir == "." else f"{layout.engine_dir}/"
    beside = "" if layout.tokenizer_dir == "." else f"{layout.tokenizer_dir}/"
    texts = {
        f"{beside}tokenizer.json": "{}",
        f"{beside}tokenizer_config.json": TOKENIZER_CONFIG,
        f"{beside}generation_config.json": "{}",
    }
    if "config.json" in layout.model_files:
        texts[f"{beside}config.json"] = json.dumps(HF_CONFIG)
    if kind == "engine":
        config = engine_config(version=release.trtllm, tp=tp, pp=pp)
        texts |= engine_files(config, at=at)
    else:
        texts |= {"config.json": json.dumps(HF_CONFIG), "model.safetensors": "weights"}
    texts |= layout.files
    entries = serving_properties(release, placed, dtype="float16")
    texts["serving.properties"] = render_properties(entries).decode()
    return texts
