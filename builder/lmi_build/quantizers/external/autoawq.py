"""AutoAWQ as a provider: what it can do, and a recipe in its words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.quantizers.builtin_checks import linears_of
from lmi_build.quantizers.external.library import ENTRY, Library, refusal
from lmi_build.spi import ProviderInfo
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec

NAME = "autoawq"
_BITS = 4
# Output channels that the search for clipping takes at once.
_CLIP_OUTPUTS = 64
# Samples that move through a block at once.
_PARALLEL_SAMPLES = 8
# `model_type`s of 0.2.9 that are decoders of text without experts.
_MODEL_TYPES = frozenset(
    {
        "bloom",
        "cohere",
        "falcon",
        "gemma",
        "gemma2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "llama",
        "mistral",
        "mpt",
        "opt",
        "phi3",
        "qwen2",
        "qwen3",
        "stablelm",
        "starcoder2",
    }
)


def native(spec: QuantSpec, model: ModelFacts) -> dict[str, JSONValue]:
    """The quantization's configuration and the arguments of the run."""
    del model
    return {
        "config": {
            "w_bit": spec.bits,
            "q_group_size": spec.group_size,
            "zero_point": not spec.sym,
            "version": "GEMM",
        },
        "quantize": {
            "duo_scaling": True,
            "apply_clip": spec.clip,
            "n_parallel_calib_samples": _PARALLEL_SAMPLES,
        },
    }


def refuse(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    """What this library cannot do."""
    if model.geometry.model_type not in _MODEL_TYPES:
        yield refusal(
            NAME,
            "provider",
            f"does not know `model_type: {model.geometry.model_type}`",
            "use the provider `builtin` or `llmcompressor`",
        )
    if spec.bits != _BITS:
        yield refusal(NAME, "bits", f"packs 4 bits, not {spec.bits}", "use `bits: 4`")
    if spec.sym:
        yield refusal(NAME, "sym", "packs with zero points only", "use `sym: false`")
    if spec.then_gptq:
        yield refusal(
            NAME,
            "then_gptq",
            "does not round by GPTQ",
            "use `then_gptq: false`, or the provider `builtin`",
        )
    kept = {x.name for x in linears_of(spec, model)}
    every = {x.name for x in linears_of(replace(spec, ignore=("lm_head",)), model)}
    if kept != every:
        named = sorted(every - kept)
        yield refusal(
            NAME,
            "ignore",
            f"takes patterns for all blocks alike and cannot leave out"
            f" {join_words(named[:2], last='and')} alone",
            "ignore only `lm_head`, or use the provider `builtin`",
        )
    odd = [x for x in linears_of(spec, model) if x.num_outputs % _CLIP_OUTPUTS]
    if spec.clip and odd:
        yield refusal(
            NAME,
            "clip",
            f"searches clipping for {_CLIP_OUTPUTS} output channels at once;"
            f" `{odd[0].name}` has {odd[0].num_outputs}",
            "use `clip: false`, or the provider `builtin`",
        )


PROVIDER = Library(
    info=ProviderInfo(
        name=NAME,
        summary="AutoAWQ: AWQ in 4 bits",
        distributions=("autoawq", "torch"),
        modules=("awq",),
        salt=1,
        entry=ENTRY,
        methods=("awq",),
        threaded_methods=("awq",),
        toolchain=NAME,
    ),
    driver="lmi_build.quantizers.external.drive_autoawq",
    formats=("awq",),
    native=native,
    refuse=refuse,
)
