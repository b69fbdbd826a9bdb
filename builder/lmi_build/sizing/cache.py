"""
The cache of keys and values: its shape by architecture, its bytes by bounds.

Shapes: L layers, H key heads on a rank, D channels of a head, T tokens.

Sources: Shazeer, arXiv:1911.02150 (multi-query); Ainslie et al., arXiv:2305.13245
(grouped); DeepSeek-V2, arXiv:2405.04434 section 2.1 (latent); Jiang et al.,
arXiv:2310.06825 section 2 (sliding window); Kwon et al., arXiv:2309.06180 (blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.catalog.architectures import architectures
from lmi_build.catalog.runtimes import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.digest import JSONValue
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelGeometry

SLIDING = "sliding_attention"
CACHED = (SLIDING, "full_attention")
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
        unknown=unknown,
    )


def _rotary_dim(config: Mapping[str, JSONValue], geometry: ModelGeometry) -> int:
    """Channels of a head that are turned, as far as the map says that any are."""
    architecture = architectures().get(geometry.architecture)
    if architecture is not None and not architecture.rotary:
        return 0
    share = config.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    if isinstance(share, int | float) and 0 < share <= 1:
        return int(geometry.head_dim * share)
    return geometry.head_dim


def _count(config: Mapping[str, JSONValue], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _sliding(
    config: Mapping[str, JSONValue], geometry: ModelGeometry
) -> tuple[int, int, tuple[str, ...]]:
    """The window, the layers that have it, and what is not certain of them."""
    count, window = geometry.num_layers, _count(config, "sliding_window")
    kinds = config.get("layer_types")
    if isinstance(kinds, list | tuple) and kinds:
        strange = sorted({str(kind) for kind in kinds} - set(CACHED))
        why = (f"layers of type {', '.join(strange)} keep something else",)
        return window, list(kinds).count(SLIDING), why if strange else ()
    if window < 1 or config.get("use_sliding_window") is False:
        return 0, 0, ()
    architecture = architectures().get(geometry.architecture)
    if architecture is None:
        return window, 0, ("which layers slide is not known",)
    first = min(count, _count(config, "max_window_layers"))
    every = next((n for key in _PATTERN_KEYS if (n := _count(config, key))), 1)
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
        keeps every token and every head, as a runtime without support does.
    """
    block = runtime.block_tokens
    full = -(-bounds.max_seq_len // block) * block
    slid = min(full, -(-shape.window // block) * block)
    requests = bounds.max_batch_size * bounds.max_beam_width
    values = shape.token_layer_values(runtime, tp)
    low = shape.num_full * full + shape.num_sliding * slid
    high = (shape.num_full + shape.num_sliding) * full
    return Interval(
        low=requests * low * values.low * dtype_bits // 8,
        high=requests * high * values.high * dtype_bits // 8,
    )
