"""
What a recipe promises, lowered once to the numbers of one release's `trtllm-build`.

`trtllm-build` changes some numbers that do not suit it and says so in a log nobody
reads. `settled` is its rule; what the rule would change is refused here, so that the
engine's own `build_config` holds what the recipe says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.catalog.trtllm_flags import build_flags
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.catalog.trtllm_flags import Flag
    from lmi_build.digest import JSONValue
    from lmi_build.values.bounds import Bounds

# The default of `trtllm-build` from 0.11 on: enough to keep a GPU busy in prefill.
USUAL_NUM_TOKENS = 8192
# Above it `trtllm-build` warns that activations may exceed TensorRT's tensor volume.
MOST_NUM_TOKENS = 16384


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineBounds:
    """
    The numbers of one engine; all lengths are in tokens.

    Args:
        max_input_len: Longest prompt of one request.
        max_output_len: Most new tokens of one request.
        max_seq_len: Prompt and output together.
        max_batch_size: Requests scheduled together.
        max_num_tokens: Packed tokens of one forward pass.
        opt_num_tokens: Packed tokens that kernels are chosen for; None where the
            release has no such option or several profiles choose them.
        max_beam_width: Beams of one request.
        paged_context_fmha: Prompts can be computed in pieces and from reused blocks;
            on where that is needed, asked for or the release's default.
        chunked_context: A prompt may be longer than `max_num_tokens`, so the server
            must compute it in pieces.
        max_encoder_input_len: Longest input of an encoder; 0 without one.
    """

    max_input_len: int
    max_output_len: int
    max_seq_len: int
    max_batch_size: int
    max_num_tokens: int
    opt_num_tokens: int | None
    max_beam_width: int
    paged_context_fmha: bool
    chunked_context: bool
    max_encoder_input_len: int = 0

    def to_json(self) -> dict[str, JSONValue]:
        """The bounds as they stand in keys and manifests."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """
    What decides how bounds are lowered, beside the bounds.

    Args:
        flags: Row of the options of `trtllm-build`.
        options: The recipe's `compile.options`.
        kv_cache_dtype: `auto`, `int8` or `fp8`.
        weights_fp8: Weights and activations are FP8.
        encoder: The model has an encoder, whose attention has relative positions.
    """

    flags: str
    options: Mapping[str, JSONValue]
    kv_cache_dtype: str = "auto"
    weights_fp8: bool = False
    encoder: bool = False

    @property
    def table(self) -> Mapping[str, Flag]:
        """Every option of the release by name."""
        return build_flags(self.flags)

    def value(self, name: str) -> JSONValue:
        """What an option will be: as the recipe says, or the release's default."""
        flag = self.table.get(name)
        return self.options.get(name, flag.default if flag else None)

    @property
    def tokens_per_block(self) -> int:
        """Tokens of one block of the key-value cache."""
        value = self.value("tokens_per_block")
        return value if isinstance(value, int) else 64

    @property
    def context_fmha(self) -> bool:
        """Fused attention over prompts; there is none for relative positions."""
        return not self.encoder and self.value("context_fmha") != "disable"

    @property
    def can_chunk(self) -> bool:
        """Whether prompts can be computed in pieces."""
        return (
            self.context_fmha
            and "use_paged_context_fmha" in self.table
            and self.options.get("use_paged_context_fmha") != "disable"
            and not self.no_chunks
        )

    @property
    def no_chunks(self) -> str:
        """
        Why the builder refuses paged context attention; empty where it does not.

        Source: `build` in tensorrt_llm/builder.py, 0.9 to 0.16.
        """
        if self.kv_cache_dtype == "int8":
            return "it does not work with an int8 key-value cache"
        if self.kv_cache_dtype == "fp8" and not self.weights_fp8:
            return "with an fp8 key-value cache it needs fp8 weights"
        return ""


def settled(num_tokens: int, bounds: Bounds, terms: Terms) -> int:
    """
    What `trtllm-build` makes of `max_num_tokens`.

    Args:
        num_tokens: Packed tokens of one forward pass, as asked.
        bounds: The recipe's bounds.
        terms: Release and options.

    Source: `check_max_num_tokens` in tensorrt_llm/_common.py, 0.8 to 0.16, and the same
    on the main branch of 2025; up to 0.10 the ceiling counts prompts only.
    """
    length = bounds.max_seq_len if "max_seq_len" in terms.table else 0
    ceiling = bounds.max_batch_size * (length or bounds.max_input_len)
    num_tokens = min(num_tokens, ceiling)
    if not terms.context_fmha:
        return max(num_tokens, bounds.max_input_len)
    return max(num_tokens, terms.tokens_per_block)


def lower_bounds(bounds: Bounds, terms: Terms) -> EngineBounds:
    """
    The numbers of an engine.

    Args:
        bounds: The recipe's bounds; `bounds_problems` found nothing.
        terms: Release and options.

    Raises:
        KeyError: The release has no row of options.
    """
    num_tokens = bounds.max_num_tokens
    if num_tokens is None:
        num_tokens = settled(_wanted(bounds, terms), bounds, terms)
    chunked = num_tokens < bounds.max_input_len and terms.can_chunk
    usual = terms.value("use_paged_context_fmha") == "enable"
    return EngineBounds(
        max_input_len=bounds.max_input_len,
        max_output_len=bounds.max_output_len,
        max_seq_len=bounds.max_seq_len,
        max_batch_size=bounds.max_batch_size,
        max_num_tokens=num_tokens,
        opt_num_tokens=_opt_num_tokens(bounds, num_tokens, terms),
        max_beam_width=bounds.max_beam_width,
        paged_context_fmha=chunked or (usual and terms.can_chunk),
        chunked_context=chunked,
        max_encoder_input_len=bounds.max_input_len if terms.encoder else 0,
    )


def bounds_problems(bounds: Bounds, terms: Terms) -> Iterator[Problem]:
    """
    Every number that this release would change or cannot serve.

    Args:
        bounds: The recipe's bounds.
        terms: Release and options; those of other faults are told elsewhere.
    """
    given = bounds.max_num_tokens
    path = "bounds.max_num_tokens"
    generated = bounds.max_batch_size * bounds.max_beam_width
    most = settled(generated, bounds, terms)
    if most < generated:
        yield _problem(
            f"{bounds.max_batch_size} requests with {bounds.max_beam_width} beams"
            f" generate {generated} tokens at once, with these lengths TensorRT-LLM"
            f" packs at most {most}",
            "bounds.max_beam_width",
            f"set `max_beam_width: {max(1, most // bounds.max_batch_size)}`",
        )
    elif given is not None:
        held = settled(given, bounds, terms)
        if held != given:
            yield _problem(
                f"`max_num_tokens` is {given}, TensorRT-LLM would build {held}: the"
                f" most that {bounds.max_batch_size} requests can hold, and at least"
                f" one block of {terms.tokens_per_block} tokens",
                path,
                f"set `max_num_tokens: {held}`, or remove the line",
            )
        elif given < generated:
            yield _problem(
                f"`max_num_tokens` is {given}, but {bounds.max_batch_size} requests"
                f" with {bounds.max_beam_width} beams generate {generated} tokens at"
                " once",
                path,
                f"set `max_num_tokens: {generated}` or more, or lower `max_batch_size`",
            )
        elif given < bounds.max_input_len and not terms.can_chunk:
            yield _problem(
                f"`max_num_tokens` is {given}, less than one prompt of"
                f" {bounds.max_input_len}, which cannot be computed in pieces:"
                f" {_why_whole(terms)}",
                path,
                f"set `max_num_tokens: {bounds.max_input_len}` or more",
            )
    if terms.options.get("use_paged_context_fmha") == "enable" and terms.no_chunks:
        yield _problem(
            f"`use_paged_context_fmha` cannot be enabled: {terms.no_chunks}",
            "compile.options.use_paged_context_fmha",
            "remove the line, or set `kv_cache_dtype: auto`",
        )
    yield from _opt_problems(bounds, terms)


def explain(bounds: Bounds, terms: Terms) -> tuple[str, ...]:
    """
    One line for each number that the recipe does not say.

    Args:
        bounds: The recipe's bounds.
        terms: Release and options.
    """
    engine = lower_bounds(bounds, terms)
    parts = f"prompt {bounds.max_input_len} + output {bounds.max_output_len}"
    lines = [f"max_seq_len = {engine.max_seq_len}: {parts}"]
    if bounds.max_num_tokens is None:
        lines.append(f"max_num_tokens = {engine.max_num_tokens}: {_why(bounds, terms)}")
    if engine.opt_num_tokens is not None and "opt_num_tokens" not in terms.options:
        lines.append(
            f"opt_num_tokens = {engine.opt_num_tokens}: {bounds.max_batch_size}"
            f" requests x {bounds.max_beam_width} beams, one pass of generation"
        )
    if engine.chunked_context:
        lines.append(
            f"use_paged_context_fmha = enable: a prompt of {bounds.max_input_len} is"
            f" longer than max_num_tokens, so it is computed in pieces"
        )
    elif engine.max_num_tokens > MOST_NUM_TOKENS:
        lines.append(
            f"max_num_tokens is above {MOST_NUM_TOKENS}: activations of a wide model"
            " may exceed TensorRT's tensor volume"
        )
    if engine.max_encoder_input_len:
        lines.append(
            f"max_encoder_input_len = {engine.max_encoder_input_len}: the prompt goes"
            " to the encoder, the decoder starts from one token"
        )
    return tuple(lines)


def _wanted(bounds: Bounds, terms: Terms) -> int:
    """Enough for a whole prompt, unless that is too much and pieces will do."""
    at_once = bounds.max_batch_size * bounds.max_beam_width
    wanted = max(USUAL_NUM_TOKENS, at_once)
    if bounds.max_input_len <= MOST_NUM_TOKENS or not terms.can_chunk:
        wanted = max(wanted, bounds.max_input_len)
    return wanted


def _why(bounds: Bounds, terms: Terms) -> str:
    wanted = _wanted(bounds, terms)
    held = settled(wanted, bounds, terms)
    if held < wanted:
        return f"all that {bounds.max_batch_size} requests of these lengths can hold"
    if held > wanted:
        return f"one block of {terms.tokens_per_block} tokens, the least there is"
    if held == USUAL_NUM_TOKENS:
        return "the usual size of a pass"
    if held == bounds.max_input_len:
        return "one whole prompt"
    return "one token of each beam of each request"


def _why_whole(terms: Terms) -> str:
    if terms.no_chunks:
        return terms.no_chunks
    if terms.options.get("use_paged_context_fmha") == "disable":
        return "`compile.options` disables `use_paged_context_fmha`"
    return "there is no fused attention over prompts here"


def _opt_num_tokens(bounds: Bounds, num_tokens: int, terms: Terms) -> int | None:
    if "opt_num_tokens" not in terms.table:
        return None
    given = terms.options.get("opt_num_tokens")
    if isinstance(given, int):
        return given
    if terms.value("multiple_profiles") == "enable":
        return None
    return min(bounds.max_batch_size * bounds.max_beam_width, num_tokens)


def _opt_problems(bounds: Bounds, terms: Terms) -> Iterator[Problem]:
    given = terms.options.get("opt_num_tokens")
    if not isinstance(given, int) or "opt_num_tokens" not in terms.table:
        return
    path = "compile.options.opt_num_tokens"
    most = lower_bounds(bounds, terms).max_num_tokens
    if not 1 <= given <= most:
        yield _problem(
            f"`opt_num_tokens` is {given}, it must be from 1 to `max_num_tokens`,"
            f" {most}",
            path,
            f"set a number up to {most}, or remove the line",
        )
    elif terms.value("multiple_profiles") == "enable":
        yield _problem(
            "`opt_num_tokens` and `multiple_profiles` exclude each other",
            path,
            "remove one of the two lines",
        )


def _problem(message: str, path: str, hint: str) -> Problem:
    return Problem(code="compile.bounds", message=message, path=path, hint=hint)
