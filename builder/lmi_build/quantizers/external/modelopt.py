"""NVIDIA Model Optimizer as a provider: what it can do, and a recipe in its words."""

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

NAME = "modelopt"


def native(spec: QuantSpec, model: ModelFacts) -> dict[str, JSONValue]:
    """The name of one of the library's configurations."""
    del spec, model
    return {"config": "FP8_DEFAULT_CFG"}


def refuse(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    """
    What this library cannot do.

    Its `FP8_DEFAULT_CFG` is one scale per matrix and one per tensor of activations.
    Its AWQ and SmoothQuant leave a scale per input channel beside each linear
    (`pre_quant_scale`), which no format here has, so they are not offered.
    """
    del model
    if spec.granularity != "tensor":
        yield refusal(
            NAME,
            "granularity",
            f"scales whole matrices, not each {spec.granularity}",
            "use `granularity: tensor`",
        )
    if spec.activations != "static":
        yield refusal(
            NAME,
            "activations",
            f"makes static scales of activations, not `{spec.activations}` ones",
            "use `activations: static`",
        )
    if set(spec.ignore) - {"lm_head"}:
        yield refusal(
            NAME,
            "ignore",
            "quantizes every linear of a block here",
            "ignore only `lm_head`, or use the provider `llmcompressor`",
        )


PROVIDER = Library(
    info=ProviderInfo(
        name=NAME,
        summary="NVIDIA Model Optimizer: FP8 per tensor",
        distributions=("nvidia-modelopt", "torch"),
        modules=("modelopt",),
        salt=1,
        entry=ENTRY,
        methods=("fp8",),
        threaded_methods=("fp8",),
        toolchain=NAME,
    ),
    driver="lmi_build.quantizers.external.drive_modelopt",
    formats=("compressed-tensors",),
    native=native,
    refuse=refuse,
)
