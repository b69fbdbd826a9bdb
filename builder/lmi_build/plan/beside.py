"""
What is served beside a recipe's model: adapters, and a model that drafts.

Sources: LMI, djl_python/properties_manager/vllm_rb_properties.py (`max_loras` 4); vLLM,
config/lora.py (`max_lora_rank` 16).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.plan.sizes import subject_of
from lmi_build.sizing.lines import Adapters
from lmi_build.values.recipe import QuantSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmi_build.sizing.lines import Subject
    from lmi_build.spi import Quantizer
    from lmi_build.values.model import ModelFacts

USUAL_RANK = 16
_USUAL_COUNT = 4
_ENABLED, _COUNT, _RANK = (
    "OPTION_ENABLE_LORA",
    "OPTION_MAX_LORAS",
    "OPTION_MAX_LORA_RANK",
)
_DRAFTS = ("OPTION_SPECULATIVE_DRAFT_MODEL", "OPTION_SPECULATIVE_CONFIG")


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """
    What a user says is served beside a model.

    Args:
        adapters: Room for adapters; None leaves it to the recipe.
        draft: A model that drafts, as it is stored.
    """

    adapters: Adapters | None = None
    draft: ModelFacts | None = None


def adapters_in(environment: Mapping[str, str]) -> Adapters | None:
    """
    Room for adapters that the environment of a container asks for.

    Args:
        environment: Of the recipe's server.

    Returns:
        None where none are served; a number that is none is LMI's to refuse, and its
        default stands for it.
    """
    if environment.get(_ENABLED, "").strip().lower() != "true":
        return None
    return Adapters(
        count=_number(environment, _COUNT, _USUAL_COUNT),
        rank=_number(environment, _RANK, USUAL_RANK),
    )


def _number(environment: Mapping[str, str], key: str, usual: int) -> int:
    told = environment.get(key, "").strip()
    return int(told) if told.isascii() and told.isdecimal() else usual


def with_beside(
    subject: Subject,
    beside: Beside,
    environment: Mapping[str, str],
    quantizer: Callable[[str], Quantizer],
) -> Subject:
    """
    A model with what is served beside it.

    Args:
        subject: The model.
        beside: What a user says; the environment counts where they say nothing.
        environment: Of the recipe's server; empty without a recipe.
        quantizer: Finds a quantizer by name.
    """
    draft = beside.draft
    named = next((key for key in _DRAFTS if environment.get(key)), "")
    if draft is None and named:
        why = f"the draft model of `{named}` is not counted; name it: `--draft-model M`"
        table = replace(subject.table, unknown=(*subject.table.unknown, why))
        subject = replace(subject, table=table)
    return replace(
        subject,
        adapters=beside.adapters or adapters_in(environment),
        draft=None if draft is None else subject_of(draft, QuantSpec(), quantizer),
    )
