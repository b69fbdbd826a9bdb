"""AutoGPTQ as a provider: what it can do, and a recipe in its words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.quantizers.external.library import ENTRY, Library, refusal
from lmi_build.spi import ProviderInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec

NAME = "auto-gptq"
# `model_type`s of 0.7.1 that are decoders without experts.
_MODEL_TYPES = frozenset(
    {
        "bloom",
        "falcon",
        "gemma",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "llama",
        "mistral",
        "opt",
        "phi",
        "qwen2",
        "stablelm",
        "starcoder2",
    }
)


def native(spec: QuantSpec, model: ModelFacts) -> dict[str, JSONValue]:
    """The quantization's configuration and the arguments of the run."""
    del model
    return {
        "config": {
            "bits": spec.bits,
            "group_size": spec.group_size,
            "damp_percent": spec.damp_percent,
            "desc_act": spec.desc_act,
            "static_groups": spec.desc_act,
            "sym": spec.sym,
            "true_sequential": spec.true_sequential,
        },
        "quantize": {"batch_size": 1, "cache_examples_on_gpu": False},
    }


def refuse(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    """What this library cannot do."""
    if model.geometry.model_type not in _MODEL_TYPES:
        yield refusal(
            NAME,
            "provider",
            f"does not know `model_type: {model.geometry.model_type}`",
            "use the provider `builtin` or `gptqmodel`",
        )
    if set(spec.ignore) - {"lm_head"}:
        yield refusal(
            NAME,
            "ignore",
            "quantizes every linear of a block",
            "ignore only `lm_head`, or use the provider `gptqmodel`",
        )


PROVIDER = Library(
    info=ProviderInfo(
        name=NAME,
        summary="AutoGPTQ: GPTQ on a CUDA device",
        distributions=("auto-gptq", "torch"),
        modules=("auto_gptq",),
        salt=1,
        entry=ENTRY,
        methods=("gptq",),
        threaded_methods=("gptq",),
        toolchain=NAME,
    ),
    driver="lmi_build.quantizers.external.drive_auto_gptq",
    formats=("gptq",),
    native=native,
    refuse=refuse,
)
