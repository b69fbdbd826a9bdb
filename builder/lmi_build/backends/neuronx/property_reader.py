"""The properties of one release, read as its handler reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.neuronx.front_ends import NeuronFrontEnd

# Words that say yes and no to pydantic.
_YES = frozenset({"1", "on", "t", "true", "y", "yes"})
_NO = frozenset({"0", "off", "f", "false", "n", "no"})
NUMBER = re.compile(r"\s*[+-]?\d+\s*\Z", re.ASCII)
# Variables that are the defaults of properties.
VARIABLES = {
    "context_length_estimate": "NEURON_CONTEXT_LENGTH_ESTIMATE",
    "on_device_embedding": "NEURON_ON_DEVICE_EMBEDDING",
    "shard_over_sequence": "NEURON_SHARD_OVER_SEQUENCE",
}
GENERATION_VARIABLE = "NEURON_ON_DEV_GENERATION"
# Properties that ask for graphs, or for a way of loading, that this does not follow.
_UNFOLLOWED = (
    "speculative_draft_model",
    "on_device_generation",
    "on_device_embedding_config",
)


class RefusedError(Exception):
    """
    The release does not come from these properties to a call that finds graphs.

    Args:
        reason: Why, with the names that decide.
        fix: What to write instead.
        outcome: One of `verdicts.OUTCOMES`.
        undecided: Only the machine knows; what is not compiled yet can do with that.
    """

    def __init__(
        self, reason: str, fix: str, *, outcome: str = "fails", undecided: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix
        self.outcome = outcome
        self.undecided = undecided


class PropertyReader:
    """The properties of one release, without `option.`."""

    def __init__(
        self,
        front: NeuronFrontEnd,
        properties: Mapping[str, str],
        environment: Mapping[str, str],
    ) -> None:
        self._read = frozenset({*front.reads, *front.neuron_config})
        self._properties = properties
        self._environment = environment if front.environment else {}

    def text(self, name: str) -> str | None:
        """A property that the release reads; None where it is not set."""
        return self._properties.get(f"option.{name}") if name in self._read else None

    def number(self, name: str) -> int | None:
        """A whole number; None where it is not set."""
        text = self.text(name)
        if text is None:
            return None
        if not NUMBER.match(text):
            raise unread(name, text, "a whole number")
        return int(text)

    def word(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of some words; empty where it is not set."""
        text = self.text(name)
        if text is not None and text not in allowed:
            raise unread(name, text, join_words(allowed))
        return text or ""

    def truth(self, name: str) -> bool | None:
        """Yes or no, also from its variable; None where neither is set."""
        text = self.text(name)
        if text is None:
            return self._environment_truth(name)
        word = text.lower()
        if word not in _YES | _NO:
            raise unread(name, text, "`true` or `false`")
        return word in _YES

    def variable(self, name: str) -> str | None:
        """The variable that is a property's default, where the release has one."""
        return self._environment.get(VARIABLES.get(name, ""))

    def _environment_truth(self, name: str) -> bool | None:
        return {"true": True, "false": False}.get((self.variable(name) or "").lower())

    def machine_decides(self, name: str) -> None:
        """
        Refuse a number that the machine makes up.

        Raises:
            RefusedError: Always.
        """
        raise RefusedError(
            f"`option.{name}` is not set, so the machine decides, and another number"
            " than the compiled one finds no graph",
            f"write `option.{name}`",
            undecided=True,
        )

    def refuse_unfollowed(self) -> None:
        """
        Refuse what needs graphs that no artifact of ours has.

        Raises:
            RefusedError: One of them is set.
        """
        name = next((name for name in _UNFOLLOWED if self.text(name) is not None), None)
        if name is not None:
            raise RefusedError(
                f"`option.{name}` asks for graphs that are not among the compiled ones",
                f"remove `option.{name}`",
            )

    @property
    def generation_variable(self) -> bool:
        """A variable says yes to what the loader then trips over."""
        return self._environment.get(GENERATION_VARIABLE, "").lower() == "true"


def unread(name: str, text: str, allowed: str) -> RefusedError:
    """The refusal of a value that the handler does not take."""
    return RefusedError(
        f"`option.{name}` is {text!r}, which the handler refuses",
        f"write {allowed}",
    )
