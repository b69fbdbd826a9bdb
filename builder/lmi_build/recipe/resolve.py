"""A checked recipe with every default filled in, as frozen values and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.recipe.forms import source_kind
from lmi_build.values.bounds import Bounds
from lmi_build.values.recipe import (
    CalibrationSpec,
    CompileSpec,
    Gates,
    JobSpec,
    ModelSpec,
    PackageSpec,
    PublishSpec,
    QuantSpec,
    Recipe,
    ServeSpec,
    VerifySpec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Span
    from lmi_build.recipe.model import RecipeModel

# Enough to see an answer, and to average over; shorter where the bounds are.
_VERIFY_NEW_TOKENS = 32
_VERIFY_SEQ_LEN = 512

# What a method does to weights when it has no option for it.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "none": {"bits": 16, "group_size": -1, "ignore": ()},
    "int8": {"bits": 8},
    "fp8": {"bits": 8, "group_size": -1},
    "smoothquant": {"bits": 8, "group_size": -1},
}


def to_recipe(
    model: RecipeModel,
    *,
    file: str,
    overrides: tuple[str, ...],
    spans: Mapping[str, Span],
    variant: Mapping[str, JSONValue],
) -> Recipe:
    """Fill in the defaults that hang on other values, and leave pydantic behind."""
    document = _document(model)
    verify = dict(document["verify"])
    publish = document.get("publish")
    return Recipe(
        name=document["name"],
        file=file,
        model=ModelSpec(**document["model"]),
        quantize=_quantize(document["quantize"]),
        bounds=Bounds(**document["bounds"]),
        compile=CompileSpec(**document["compile"]),
        serve=ServeSpec(**document["serve"]),
        verify=VerifySpec(
            prompts=tuple(verify.pop("prompts")),
            gates=Gates(**verify.pop("gates")),
            **verify,
        ),
        package=PackageSpec(**document["package"]),
        publish=PublishSpec(**publish) if publish else None,
        document=document,
        overrides=overrides,
        spans=spans,
        variant=variant,
        job=_job(document["job"]) if "job" in document else None,
    )


def _document(model: RecipeModel) -> dict[str, Any]:
    document = model.model_dump(by_alias=True, exclude_none=True)
    bounds, verify = document["bounds"], document["verify"]
    verify.setdefault(
        "max_new_tokens", min(_VERIFY_NEW_TOKENS, bounds["max_output_len"])
    )
    verify.setdefault("max_seq_len", min(_VERIFY_SEQ_LEN, bounds["max_input_len"]))
    if source_kind(document["model"]["source"]) == "hub":
        document["model"].setdefault("revision", "main")
    return document


def _job(section: Mapping[str, Any]) -> JobSpec:
    values = dict(section)
    if values["volume_size_gb"] == "auto":
        del values["volume_size_gb"]
    for name in ("subnets", "security_group_ids"):
        values[name] = tuple(values[name])
    return JobSpec(**values)


def _quantize(section: Mapping[str, Any]) -> QuantSpec:
    values = {**_FIXED.get(section["method"], {}), **section}
    values["ignore"] = tuple(values["ignore"])
    calibration = values.pop("calibration", None)
    return QuantSpec(
        **values,
        calibration=CalibrationSpec(**calibration) if calibration else None,
    )
