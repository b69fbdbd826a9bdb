"""The options of one `trtllm-build`, in the words of one release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.options import flag_words, option_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.trtllm.bounds import EngineBounds, Terms
    from lmi_build.catalog.trtllm_flags import Flag
    from lmi_build.digest import JSONValue

# Parts of a model that are engines of their own; a decoder alone is `model`.
MODEL, ENCODER, DECODER = "model", "encoder", "decoder"
# Plugins whose dtype is the model's. Up to 0.10 they do not know `auto`, and their
# default is float16 whatever the model is.
_PLUGINS = ("gpt_attention_plugin", "gemm_plugin")
_ENCODER_PLUGINS = ("bert_attention_plugin",)
_MOE_PLUGINS = ("moe_plugin",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """
    One call of `trtllm-build`.

    Args:
        part: `model`, `encoder` or `decoder`.
        checkpoint: Folder of its checkpoint inside the checkpoint's.
        engine: Folder of its engine inside the engine's.
        arguments: Its options, without those that say where things lie.
        bounds: What its `build_config` must say afterwards.
    """

    part: str
    checkpoint: str
    engine: str
    arguments: tuple[str, ...]
    bounds: Mapping[str, int]

    def to_json(self) -> dict[str, JSONValue]:
        """The build as it stands in a stage's parameters."""
        return {
            "part": self.part,
            "checkpoint": self.checkpoint,
            "engine": self.engine,
            "arguments": list(self.arguments),
            "bounds": dict(self.bounds),
        }


def builds(
    engine: EngineBounds, terms: Terms, *, dtype: str, moe: bool = False
) -> tuple[Build, ...]:
    """
    Every call of `trtllm-build` that an artifact takes.

    Args:
        engine: Its bounds.
        terms: Release and options.
        dtype: Of what is not quantized, such as `bfloat16`.
        moe: The model has experts.
    """
    parts = (ENCODER, DECODER) if terms.encoder else (MODEL,)
    return tuple(
        Build(
            part=part,
            checkpoint="" if part == MODEL else part,
            engine="" if part == MODEL else part,
            arguments=build_arguments(engine, terms, dtype=dtype, part=part, moe=moe),
            bounds=_asked(_numbers(engine, terms, part)),
        )
        for part in parts
    )


def build_arguments(
    engine: EngineBounds,
    terms: Terms,
    *,
    dtype: str,
    part: str = MODEL,
    moe: bool = False,
) -> tuple[str, ...]:
    """
    The words of one call: bounds, what serving needs, then the recipe's own options.

    Args:
        engine: Bounds of the artifact.
        terms: Release and options.
        dtype: Of what is not quantized.
        part: `model`, `encoder` or `decoder`.
        moe: The model has experts.

    Raises:
        KeyError: The release has no row of options.
    """
    table = terms.table
    values: dict[str, JSONValue] = {**_numbers(engine, terms, part)}
    values |= _serving(table, paged=part != ENCODER)
    values |= _plugins(table, terms, dtype, part=part, moe=moe)
    if part == MODEL and "use_paged_context_fmha" in table:
        on = engine.paged_context_fmha
        values["use_paged_context_fmha"] = "enable" if on else "disable"
    if part != MODEL:
        # Relative attention has no fused kernel.
        values["context_fmha"] = "disable"
    own = {name for name in values if name in terms.options}
    words: list[str] = []
    for name, value in values.items():
        if value is not None and name not in own:
            words += flag_words(table[name], value)
    return (*words, *option_arguments(terms.options, terms.flags))


def _numbers(engine: EngineBounds, terms: Terms, part: str) -> dict[str, int | None]:
    """Bounds by the release's own names, in the order a reader looks for them."""
    table = terms.table
    if part == ENCODER:
        length = output = 0
        prompt, tokens = engine.max_encoder_input_len, engine.max_encoder_input_len
    elif part == DECODER:
        # It starts from one token.
        prompt, output = 1, engine.max_output_len
        length = tokens = 1 + output
    else:
        prompt, output = engine.max_input_len, engine.max_output_len
        length = tokens = engine.max_seq_len
    most = engine.max_batch_size * tokens
    num_tokens = min(engine.max_num_tokens, most) if part != MODEL else None
    numbers: dict[str, int | None] = {
        "max_batch_size": engine.max_batch_size,
        "max_input_len": prompt,
    }
    if "max_seq_len" in table:
        # An encoder's is its input: it writes nothing.
        numbers["max_seq_len"] = length or prompt
    else:
        numbers["max_output_len"] = output
    numbers["max_num_tokens"] = num_tokens or engine.max_num_tokens
    if "opt_num_tokens" in table:
        opt = engine.opt_num_tokens
        numbers["opt_num_tokens"] = (
            min(opt, numbers["max_num_tokens"] or opt) if opt else None
        )
    numbers["max_beam_width"] = engine.max_beam_width
    if part == DECODER:
        numbers["max_encoder_input_len"] = engine.max_encoder_input_len
    return numbers


def _asked(numbers: Mapping[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in numbers.items() if value is not None}


def _serving(table: Mapping[str, Flag], *, paged: bool) -> dict[str, JSONValue]:
    """What in-flight batching needs; said although it is the default."""
    values: dict[str, JSONValue] = {"remove_input_padding": "enable"}
    if "kv_cache_type" in table:
        values["kv_cache_type"] = "paged" if paged else "disabled"
    else:
        values["paged_kv_cache"] = "enable" if paged else "disable"
    return values


def _plugins(
    table: Mapping[str, Flag], terms: Terms, dtype: str, *, part: str, moe: bool
) -> dict[str, JSONValue]:
    """Plugins of the model's dtype; the release's defaults are slow or float16."""
    names: tuple[str, ...] = _PLUGINS
    if part != MODEL:
        names += _ENCODER_PLUGINS
    if moe:
        names += _MOE_PLUGINS
    values: dict[str, JSONValue] = {}
    for name in names:
        flag = table.get(name)
        if flag is None or (name == "gemm_plugin" and terms.weights_fp8):
            continue
        values[name] = "auto" if "auto" in flag.choices else dtype
    return values
