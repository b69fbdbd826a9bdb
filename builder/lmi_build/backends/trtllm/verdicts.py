"""What can become of a folder at start-up, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.trtllm.front_ends import FrontEnd

# Takes the engine as it is; builds one at every start; goes past TensorRT-LLM to
# another handler; ends with an error; takes other files than these.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """
    One folder before one front end.

    Args:
        folder: What lies at the container's model folder.
        front: The release's front end.
        properties: The entries of `serving.properties` and of the environment.
        lmi: Version of LMI, as it was asked for.
        trtllm: Version of TensorRT-LLM of the image, empty when unknown.
        mount: Where the folder is in the container.
    """

    folder: Folder
    front: FrontEnd
    properties: Mapping[str, str]
    lmi: str
    trtllm: str
    mount: str

    def option(self, name: str) -> str | None:
        """A property of the model, without `option.`."""
        return self.properties.get(f"option.{name}")

    def number(self, name: str) -> int | None:
        """A property that is a number; None when it is not set or not one."""
        text = (self.option(name) or "").strip()
        return int(text) if text.isascii() and text.isdigit() else None


def loads(reason: str, *, lmi: str, notes: tuple[str, ...] = ()) -> Verdict:
    """The folder is taken as it is."""
    return Verdict(lmi=lmi, outcome="loads", reason=reason, notes=notes)


def compiles(reason: str, fix: str, *, lmi: str) -> Verdict:
    """An engine is built at every start."""
    return Verdict(lmi=lmi, outcome="compiles", reason=reason, fix=fix)


def skips(reason: str, fix: str, *, lmi: str) -> Verdict:
    """TensorRT-LLM is not used."""
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
