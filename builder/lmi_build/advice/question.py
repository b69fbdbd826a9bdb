"""What is asked of the advisor, and what it may be asked to give up."""

from __future__ import annotations

from dataclasses import dataclass, replace

GOALS = ("latency", "throughput", "cost")
EVENNESS = ("even", "uneven", "unknown")
# A wish for one feature is named `feature:NAME`.
FEATURE = "feature:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """
    One question; an empty field wishes nothing.

    Args:
        family: `model_type` of the model, such as `llama`.
        device: Of `catalog.systems.DEVICES`.
        instance: Such as `ml.g5.2xlarge`.
        instance_device: Of `catalog.systems.DEVICES`: what that instance has.
        compute_capability: Of that instance's GPU, such as `8.6`; empty for others.
        technique: Of `catalog.systems.TECHNIQUES`: the quantization to serve.
        features: Of `catalog.systems.FEATURES`.
        life: Least of `catalog.systems.LIVES` that will do.
        built: Only what lmi-build builds for.
        goal: Of `GOALS`; what to favour, never a reason to remove.
        traffic: Of `EVENNESS`.
        spread: Longest usual request over the typical one, in tokens of input and
            output together; None where no log was read.
        concurrency: Requests at one time; 0 where it is not known.
    """

    family: str = ""
    device: str = ""
    instance: str = ""
    instance_device: str = ""
    compute_capability: str = ""
    technique: str = ""
    features: tuple[str, ...] = ()
    life: str = ""
    built: bool = False
    goal: str = ""
    traffic: str = "unknown"
    spread: float | None = None
    concurrency: int = 0

    @property
    def wishes(self) -> tuple[str, ...]:
        """What can remove a system, by name, sorted."""
        plain = ("family", "device", "instance", "technique", "life", "built")
        found = [name for name in plain if getattr(self, name)]
        return tuple(sorted([*found, *(f"{FEATURE}{name}" for name in self.features)]))

    def without(self, wish: str) -> Question:
        """
        The same question with one wish less.

        Args:
            wish: Of `wishes`.
        """
        if wish.startswith(FEATURE):
            name = wish.removeprefix(FEATURE)
            kept = tuple(each for each in self.features if each != name)
            return replace(self, features=kept)
        if wish == "instance":
            return replace(self, instance="", instance_device="", compute_capability="")
        if wish == "family":
            return replace(self, family="")
        if wish == "device":
            return replace(self, device="")
        if wish == "technique":
            return replace(self, technique="")
        if wish == "built":
            return replace(self, built=False)
        return replace(self, life="")

    def said(self, wish: str) -> str:
        """
        A wish in words.

        Args:
            wish: Of `wishes`.
        """
        if wish.startswith(FEATURE):
            return f"the feature `{wish.removeprefix(FEATURE)}`"
        words = {
            "family": f"a model of family `{self.family}`",
            "device": f"the device `{self.device}`",
            "instance": f"the instance `{self.instance}`",
            "technique": f"the technique `{self.technique}`",
            "life": f"the life `{self.life}` or better",
            "built": "what lmi-build builds for",
        }
        return words[wish]
