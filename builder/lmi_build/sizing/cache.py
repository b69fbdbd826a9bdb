"""
The cache of keys and values: its shape by architecture, its bytes by bounds.

Shapes: L layers, H key heads on a rank, D channels of a head, T tokens.

Sources: Shazeer, arXiv:1911.02150 (multi-query); Ainslie et al., arXiv:2305.13245
(grouped); DeepSeek-V2, arXiv:2405.04434 section 2.1 (latent); Jiang et al.,
arXiv:2310.06825 section 2 (sliding window); Kwon et al., arXiv:2309.06180 (blocks);
vLLM v1/core/kv_cache_utils.py (`_get_kv_cache_groups_uniform_page_size`) and
model_executor/layers/rotary_embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.catalog.architectures import architectures
from lmi_build.catalog.runtimes import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.catalog.architectures import Architecture
    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.digest import JSONValue
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelGeometry

SLIDING = "sliding_attention"
CACHED = (SLIDING, "full_attention")
_NEARLY = 1.5
_PATTERN_KEYS = ("sliding_window_pattern", "_sliding_window_pattern")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheShape:
    """
    What one token leaves behind in every layer.

    Args:
        num_full: Layers that see everything.
        num_sliding: Layers that see `window` tokens.
        window: Tokens; 0 where no layer slides.
        num_kv_heads: Key heads, H of one rank.
        head_dim: D.
        latent_width: Channels of a latent cache (MLA), shared by all heads; 0 without.
        expanded_width: Channels of keys and values of one head where a latent is
            expanded.
        num_heads: Query heads, which an expanded latent has keys for.
        rotary_dim: Channels that positions turn; 0 where they are told otherwise.
        rotary_rows: Rows of all tables of sines and cosines.
        unknown: Why the shape is not certain; empty where it is.
    """

    num_full: int
    num_sliding: int
    window: int
    num_kv_heads: int
    head_dim: int
    latent_width: int = 0
    expanded_width: int = 0
    num_heads: int = 0
    rotary_dim: int = 0
    rotary_rows: int = 0
    unknown: tuple[str, ...] = ()

    def token_layer_values(self, runtime: Runtime, tp: int) -> Interval:
        """Numbers that one token leaves in one layer on one of `tp` ranks."""
        if self.latent_width:
            padded = self.latent_width
            if runtime.latent_multiple:
                padded += -padded % runtime.latent_multiple
            else:
                padded = max(padded, -(-self.num_heads // tp) * self.expanded_width)
            return Interval(low=self.latent_width, high=padded)
        width = 2 * max(1, -(-self.num_kv_heads // tp)) * self.head_dim
        return Interval(low=width, high=width)

    def most_layers(self, runtime: Runtime) -> int:
        """
        Layers that a runtime makes room for.

        Where layers of two kinds share one pool, their groups are made equally large,
        as large as the smaller kind, or as the larger one where that is not by half
        more; what is missing in the last group is room that nothing fills.
        """
        kinds = (self.num_full, self.num_sliding)
        if not runtime.groups_layers or not all(kinds):
            return sum(kinds)
        sizes = [min(kinds)]
        if max(kinds) < _NEARLY * min(kinds):
            sizes.append(max(kinds))
        return max(sum(-(-kind // size) * size for kind in kinds) for size in sizes)


def kv_heads_of(config: Mapping[str, JSONValue], geometry: ModelGeometry) -> int:
    """Key heads, in the spelling of every architecture that shares them."""
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    if geometry.model_type == "falcon" and "multi_query" not in config:
        return geometry.num_key_value_heads
    found = config.get("num_kv_heads")
    is_count = isinstance(found, int) and not isinstance(found, bool) and found > 0
    return int(found) if is_count else geometry.num_key_value_heads  # type: ignore[arg-type]


def cache_shape(config: Mapping[str, JSONValue], geometry: ModelGeometry) -> CacheShape:
    """
    Read the shape of a cache.

    Args:
        config: The whole `config.json`.
        geometry: Its sizes.
    """
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, dict) else config
    window, num_sliding, unknown = _sliding(config, geometry)
    latent = _count(config, "kv_lora_rank")
    rope = _count(config, "qk_rope_head_dim")
    wide = _count(config, "qk_nope_head_dim") + rope + _count(config, "v_head_dim")
    return CacheShape(
        num_full=geometry.num_layers - num_sliding,
        num_sliding=num_sliding,
        window=window if num_sliding else 0,
        num_kv_heads=kv_heads_of(config, geometry),
        head_dim=geometry.head_dim,
        latent_width=latent + rope if latent else 0,
        expanded_width=wide if latent else 0,
        num_heads=geometry.num_attention_heads,
        rotary_dim=rope if latent else _rotary_dim(config, geometry),
        rotary_rows=_rotary_rows(config, geometry, slides=num_sliding > 0),
        unknown=unknown,
    )


def _family(
    config: Mapping[str, JSONValue], geometry: ModelGeometry
) -> Architecture | None:
    """The map of the architecture, or of the language model inside of it."""
    known = architectures()
    if geometry.architecture in known:
        return known[geometry.architecture]
    text = config.get("text_config")
    kind = text.get("model_type") if isinstance(text, dict) else None
    return next((row for row in known.values() if row.model_type == kind), None)


def _rotary_dim(config: Mapping[str, JSONValue], geometry: ModelGeometry) -> int:
    """Channels of a head that are turned, as far as the map says that any are."""
    architecture = _family(config, geometry)
    if architecture is not None and not architecture.rotary:
        return 0
    share = config.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    if isinstance(share, int | float) and 0 < share <= 1:
        return int(geometry.head_dim * share)
    return geometry.head_dim


def _rotary_rows(
    config: Mapping[str, JSONValue], geometry: ModelGeometry, *, slides: bool
) -> int:
    """
    Rows of the tables of sines and cosines, by how positions are stretched.

    Linear and dynamic scaling write a row for each stretched position, YaRN for each
    of the original ones times the factor, LongRoPE one table for short and one for long
    texts. Layers that slide have a table of their own where their base differs.
    """
    positions = geometry.max_position_embeddings
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    scaling = scaling if isinstance(scaling, dict) else {}
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    factor = factor if isinstance(factor, int | float) and factor > 1 else 1
    original = _count(scaling, "original_max_position_embeddings") or _count(
        config, "original_max_position_embeddings"
    )
    rows = positions
    if kind in {"linear", "dynamic"}:
        rows = int(positions * factor)
    elif kind in {"yarn", "deepseek_yarn"}:
        rows = max(positions, int((original or positions) * factor))
    elif kind in {"longrope", "su"}:
        rows = positions + original
    own = slides and "rope_local_base_freq" in config
    return rows + positions if own else rows


def _count(config: Mapping[str, JSONValue], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _sliding(
    config: Mapping[str, JSONValue], geometry: ModelGeometry
) -> tuple[int, int, tuple[str, ...]]:
    """The window, the layers that have it, and what is not certain of them."""
    architecture = _family(config, geometry)
    usual = architecture.defaults if architecture is not None else {}
    count, window = geometry.num_layers, _count(config, "sliding_window")
    if "sliding_window" not in config and isinstance(usual.get("sliding_window"), int):
        window = usual["sliding_window"]
    kinds = config.get("layer_types")
    if isinstance(kinds, list | tuple) and kinds:
        strange = sorted({str(kind) for kind in kinds} - set(CACHED))
        why = (f"layers of type {', '.join(strange)} keep something else",)
        return window, list(kinds).count(SLIDING), why if strange else ()
    used = config.get("use_sliding_window", usual.get("use_sliding_window"))
    if window < 1 or used is False:
        return 0, 0, ()
    if architecture is None:
        return window, 0, ("which layers slide is not known",)
    told = {"max_window_layers": usual.get("max_window_layers"), **config}
    first = min(count, _count(told, "max_window_layers"))
    every = next((n for key in _PATTERN_KEYS if (n := _count(config, key))), 0)
    every = every or int(usual.get("window_pattern", 1))
    sliding = {
        "all": count,
        "from": count - first,
        "even-below": (first + 1) // 2 if first else (count + 1) // 2,
        "pattern": count - count // every,
    }
    return window, sliding.get(architecture.windows, 0), ()


def cache_bytes(
    shape: CacheShape, bounds: Bounds, runtime: Runtime, *, dtype_bits: int, tp: int
) -> Interval:
    """
    Bytes that the cache must have on each rank for a full batch of longest requests.

    Args:
        shape: Of the model.
        bounds: Lengths, batch and beams.
        runtime: Its blocks.
        dtype_bits: Of one number.
        tp: Ranks.

    Returns:
        Low keeps only the window where a layer slides, and a latent as it is; high
        keeps every token, every head and what groups of layers are filled up with, as
        a runtime without support does.
    """
    block = runtime.block_tokens
    full = -(-bounds.max_seq_len // block) * block
    slid = min(full, -(-shape.window // block) * block)
    requests = bounds.max_batch_size * bounds.max_beam_width
    values = shape.token_layer_values(runtime, tp)
    low = shape.num_full * full + shape.num_sliding * slid
    high = shape.most_layers(runtime) * full
    return Interval(
        low=requests * low * values.low * dtype_bits // 8,
        high=requests * high * values.high * dtype_bits // 8,
    )
