"""Artifacts of Transformers NeuronX, and the calls that made them, as small values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from lmi_build.backends.folder import Folder, listed_folder
from lmi_build.backends.neuronx.calls import Made, NeuronCall, plain
from lmi_build.backends.neuronx.front_ends import GRAPHS_DIR, neuron_front_ends
from lmi_build.backends.neuronx.handler_properties import OPTION_WORDS
from lmi_build.backends.neuronx.layout import (
    HEAD_FILE,
    LAYER_FILE,
    artifact_layout,
    neuron_block,
)
from lmi_build.backends.neuronx.loader_call import AUTO_CLASS, own_class
from lmi_build.backends.neuronx.serving_keys import serving_properties
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.checkpoint.header import Header, header_length, parse_header
from lmi_build.package.properties import render_properties

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmi_build.backends.neuronx.front_ends import NeuronFrontEnd
    from lmi_build.catalog.neuron_releases import NeuronRelease

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
}
CONFIG = "transformers_neuronx.config"
TNX_RELEASES = [
    row
    for row in neuron_releases().values()
    if row.version in neuron_front_ends() and row.container == "djl-neuronx"
]


def front_of(release: NeuronRelease) -> NeuronFrontEnd:
    """The front end of a release."""
    return neuron_front_ends()[release.version]


def neuron_call(  # noqa: PLR0913 - one for each thing that a test changes
    release: NeuronRelease,
    *,
    amp: str = "f16",
    tp: int = 2,
    batch: int = 4,
    n_positions: int = 2048,
    context: tuple[int, ...] | None = (2048,),
    int8: bool = False,
    continuous: bool = True,
    options: Mapping[str, Any] | None = None,
    model_type: str = "llama",
) -> NeuronCall:
    """A call that compiles for one release."""
    front = front_of(release)
    config: dict[str, Any] = {}
    if continuous:
        config["continuous_batching"] = Made(
            factory=f"{CONFIG}.ContinuousBatchingConfig",
            arguments={"batch_size_for_shared_caches": batch},
        )
    if int8:
        config["quant"] = Made(
            factory=f"{CONFIG}.QuantizationConfig",
            arguments={"quant_dtype": "s8", "dequant_dtype": amp},
        )
    if front.smart_defaults:
        config["on_device_embedding"] = True
    arguments: dict[str, Any] = {
        "batch_size": batch,
        "amp": amp,
        "tp_degree": tp,
        "n_positions": [n_positions] if continuous else n_positions,
        "neuron_config": Made(
            factory=f"{CONFIG}.NeuronConfig",
            arguments={**config, **(options or {})},
        ),
    }
    if context is not None:
        arguments["context_length_estimate"] = list(context)
    own = front.model_class == "own"
    return NeuronCall(
        loader="tnx",
        model_class=own_class(model_type) if own else AUTO_CLASS,
        arguments=arguments,
        steps=(("to_neuron", {}), ("save", {"directory": {"path": GRAPHS_DIR}})),
        environment={},
        flags=(),
        num_graphs=2,
        num_neffs=2,
        files=artifact_layout(release, num_layers=2).files,
        target="inf2",
    )


@st.composite
def reachable_calls(draw: st.DrawFn, release: NeuronRelease) -> tuple[NeuronCall, bool]:
    """A call that this release's loader can repeat, and whether it batches itself."""
    front = front_of(release)
    batch = draw(st.integers(1, 64))
    # Without a scheduler the oldest handler leaves these models to optimum-neuron.
    rolling = not front.strategies or draw(st.booleans())
    may_join = rolling and batch >= front.continuous_from
    continuous = may_join and (not front.strategies or draw(st.booleans()))
    n_positions = draw(st.integers(1, 1 << 17))
    lengths = st.integers(1, n_positions)
    several = st.lists(lengths, min_size=1, max_size=4, unique=True).map(sorted)
    context = draw(st.none() | several.map(tuple))
    options: dict[str, Any] = {}
    for name in front.neuron_config:
        words = OPTION_WORDS.get(name)
        values = st.sampled_from(words) if words else st.just(value=True)
        if name != "on_device_embedding" and draw(st.booleans()):
            options[name] = draw(values)
    bsh = options.get("cache_layout") == "BSH"
    if continuous and (front.context_rule == "whole" or bsh or context is None):
        context = (n_positions,)
    call = neuron_call(
        release,
        amp=draw(st.sampled_from(["f32", "f16", "bf16"])),
        tp=draw(st.sampled_from([1, 2, 8, 12, 24, 32])),
        batch=batch,
        n_positions=n_positions,
        context=context,
        int8=draw(st.booleans()),
        continuous=continuous,
        options=options,
    )
    return call, rolling


def neuron_texts(
    release: NeuronRelease,
    call: NeuronCall | None = None,
    *,
    config: Mapping[str, Any] = LLAMA,
) -> dict[str, bytes]:
    """A whole artifact as it is laid out, with made-up graphs and weights."""
    call = call or neuron_call(release)
    layout = artifact_layout(release, num_layers=int(config["num_hidden_layers"]))
    block = neuron_block(release, call.arguments)
    names = [f"{number:020x}" for number in range(call.num_neffs)]
    arguments = plain(call.arguments)
    defaults = {"fuse_qkv": False, "quant": None, "continuous_batching": None}
    record = {
        "neuron_config": {**defaults, **arguments["neuron_config"]["arguments"]},
        "effective": {"context_buckets": arguments.get("context_length_estimate")},
        "compiler_version": release.neuronx_cc,
        "graphs": names,
        "num_neffs": len(names),
        "release": release.name,
    }
    texts = {
        "config.json": json.dumps({**config, "neuron": block}).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
        "neuron.json": json.dumps(record).encode(),
        f"{GRAPHS_DIR}/VERSION": release.neuronx_cc.encode(),
        **{f"{GRAPHS_DIR}/{name}.neff": b"neff" for name in names},
    }
    tp = int(call.arguments["tp_degree"])
    at = layout.weights_dir
    if layout.presharded:
        marked = {**config, "is_presharded_checkpoint": True}
        texts[f"{at}/config.json"] = json.dumps(marked).encode()
        texts[f"{at}/{HEAD_FILE}"] = safetensors(sharded(tp, ("lm_head_weight",)))
        for layer in range(int(config["num_hidden_layers"])):
            parts = sharded(tp, ("attn_q_weight", "mlp_in_weight"))
            texts[f"{at}/{LAYER_FILE.format(layer)}"] = safetensors(parts)
    else:
        texts[f"{at}/config.json"] = json.dumps(config).encode()
        texts[f"{at}/model.safetensors"] = safetensors({"lm_head.weight": (16, 16)})
    entries = serving_properties(release, call, config)
    texts["serving.properties"] = render_properties(entries)
    return texts


def folder_of(texts: Mapping[str, bytes]) -> Folder:
    """A folder whose files hold these bytes."""
    sizes = {path: len(content) for path, content in texts.items()}
    return listed_folder(sizes, lambda path: texts[path], where="folder")


def header_of(texts: Mapping[str, bytes]) -> Callable[[str], Header]:
    """Reads the header of one of these files."""

    def read(path: str) -> Header:
        data = texts[path]
        length = header_length(data[:8], file_bytes=len(data), where=path)
        return parse_header(data[8 : 8 + length], file_bytes=len(data), where=path)

    return read


def sharded(tp: int, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Each tensor once for each core, as Transformers NeuronX names them."""
    return {f"{name}*{rank}": (4, 8) for name in names for rank in range(tp)}


def safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A file of zeros in float16."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        offsets = [at, at + size]
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": offsets}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)
