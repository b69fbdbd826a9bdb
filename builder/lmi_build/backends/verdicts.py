"""What can become of a folder at start-up, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Takes the folder as it is; compiles at every start; goes past the backend to another
# handler; ends with an error; takes other files than these.
OUTCOMES = ("loads", "compiles", "skips", "fails", "elsewhere")
# The architectures that the front end takes for text generation end so.
_TEXT_GENERATION = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """
    What one release does with one folder.

    Args:
        lmi: Version of LMI.
        outcome: One of `OUTCOMES`.
        reason: Why, with the names that decide.
        fix: What to change; empty where it loads.
        notes: What can still go wrong, depending on the machine or on a request.
    """

    lmi: str
    outcome: str
    reason: str
    fix: str = ""
    notes: tuple[str, ...] = ()


def loads(reason: str, *, lmi: str, notes: tuple[str, ...] = ()) -> Verdict:
    """The folder is taken as it is."""
    return Verdict(lmi=lmi, outcome="loads", reason=reason, notes=notes)


def compiles(reason: str, fix: str, *, lmi: str) -> Verdict:
    """The folder is compiled at every start."""
    return Verdict(lmi=lmi, outcome="compiles", reason=reason, fix=fix)


def skips(reason: str, fix: str, *, lmi: str) -> Verdict:
    """The backend is not used."""
    return Verdict(lmi=lmi, outcome="skips", reason=reason, fix=fix)


def fails(reason: str, fix: str, *, lmi: str) -> Verdict:
    """The container ends with an error, or answers with nothing else."""
    return Verdict(lmi=lmi, outcome="fails", reason=reason, fix=fix)


def elsewhere(reason: str, fix: str, *, lmi: str) -> Verdict:
    """Other files decide."""
    return Verdict(lmi=lmi, outcome="elsewhere", reason=reason, fix=fix)


def generates_text(config: Mapping[str, object]) -> bool:
    """
    Whether the front end takes a configuration for that of a text generator.

    Source: `LmiConfigRecommender.isTextGenerationModel`,
    `HuggingFaceModelConfig.getArchitectures`.
    """
    named = config.get("architectures")
    names = [*named] if isinstance(named, list) else []
    mapped = config.get("auto_map")
    names += [*mapped] if isinstance(mapped, dict) else []
    texts = (name for name in names if isinstance(name, str))
    return any(name.endswith(_TEXT_GENERATION) for name in texts)
