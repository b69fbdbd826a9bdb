"""What every section of a recipe is, with the values that several of them hold."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lmi_build.recipe import aws_forms

# Larger than any model's positions or any batch; they catch slips of the keyboard.
MAX_TOKENS = 1 << 24
MAX_COUNT = 1 << 16

Tokens: TypeAlias = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=MAX_COUNT)]
TagKey: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_tag_key)]
TagValue: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_tag_value)]
KmsKey: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_kms_key)]
Region: TypeAlias = Annotated[str, AfterValidator(aws_forms.check_region)]


class Section(BaseModel):
    """Frozen, exact types, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        # Sections are built once, inside `RecipeModel`: half of the start-up time.
        defer_build=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )
