"""
Whether a model's configuration and its tensors describe the same decoder.

Toolchains believe one or the other; where the two differ, some build a smaller model
without a word, and others end deep inside a graph. Headers are enough to see it before
anything is downloaded or computed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.architectures import architectures
from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lmi_build.catalog.architectures import Architecture, Names
    from lmi_build.values.model import ModelGeometry, TensorFact


def check_consistency(
    source: str,
    *,
    config: Mapping[str, Any],
    geometry: ModelGeometry,
    tensors: Iterable[TensorFact],
) -> None:
    """
    Compare sizes and tensors of a float model whose architecture is known.

    Other architectures name and shape their tensors in ways of their own, and packed
    weights have other shapes; both are left to whoever can read them.

    Raises:
        SourceInvalid: `source.config-mismatch`, with both numbers.
    """
    known = architectures().get(geometry.architecture)
    if known is None or config.get("quantization_config"):
        return
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    known = known.locate(shapes)
    wanted = _wanted(known, geometry, config)
    faults = [*_layers(known, geometry, shapes), *_shapes(wanted, shapes)]
    if not faults:
        return
    more = f" ({len(faults)} such differences)" if len(faults) > 1 else ""
    raise SourceInvalid(
        f"`config.json` of `{source}` does not describe its weights: {faults[0]}{more}",
        code="source.config-mismatch",
        hints=("fetch `config.json` and the weights from one revision",),
    )


def float_shapes(
    config: Mapping[str, Any], geometry: ModelGeometry, names: Names
) -> dict[str, tuple[int, ...]]:
    """
    Shapes of a float model's weights, as far as its configuration says them.

    Args:
        config: Its `config.json`.
        geometry: Its sizes.
        names: Tensors of the file, which may leave out a prefix.

    Returns:
        Module name to shape; empty for architectures that are not known.
    """
    known = architectures().get(geometry.architecture)
    if known is None:
        return {}
    return dict(_wanted(known.locate(names), geometry, config))


def _layers(
    known: Architecture, geometry: ModelGeometry, shapes: Mapping[str, object]
) -> Iterator[str]:
    pattern = re.compile(rf"{re.escape(known.blocks)}\.(\d+)\.")
    found = {int(m[1]) for name in shapes if (m := pattern.match(name))}
    missing = sorted(set(range(geometry.num_layers)) - found)
    if missing:
        yield (
            f"it names {geometry.num_layers} layers, of layer {missing[0]} there are"
            " no tensors"
        )
    elif len(found) > geometry.num_layers:
        yield f"it names {geometry.num_layers} layers, the weights have {len(found)}"


def _shapes(
    wanted: Iterable[tuple[str, tuple[int, ...]]],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[str]:
    for name, shape in wanted:
        found = shapes.get(f"{name}.weight")
        if found is not None and found != shape:
            yield f"`{name}.weight` has shape {_text(found)}, not {_text(shape)}"


def _wanted(
    known: Architecture, geometry: ModelGeometry, config: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names without `.weight`, and the shapes that the configuration means."""
    hidden, inner = geometry.hidden_size, geometry.intermediate_size
    if config.get("word_embed_proj_dim", hidden) == hidden:
        yield known.embedding, (geometry.vocab_size, hidden)
        yield known.head, (geometry.vocab_size, hidden)
    yield known.final_norm, (hidden,)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        (*known.attention_norm, *known.mlp_norm), (hidden,)
    )
    if known.query and _says_heads(known, config):
        queries = geometry.num_attention_heads * geometry.head_dim
        keys = geometry.num_key_value_heads * geometry.head_dim
        shapes[known.query] = (queries, hidden)
        shapes[known.key] = shapes[known.value] = (keys, hidden)
        shapes[known.output] = (hidden, queries)
    if known.gate and not known.router:
        shapes[known.gate] = shapes[known.up] = (inner, hidden)
        shapes[known.down] = (hidden, inner)
    for index in range(geometry.num_layers):
        for name, shape in shapes.items():
            yield f"{known.block(index)}.{name}", shape


def _says_heads(known: Architecture, config: Mapping[str, Any]) -> bool:
    """Whether nothing is left to what the architecture means by silence."""
    silent = {"head_dim": "head_dim", "num_kv_heads": "num_key_value_heads"}
    return all(key in config for name, key in silent.items() if name in known.defaults)


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
