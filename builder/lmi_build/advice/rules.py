"""
The advisor's rules: data, and one small pure function each.

A rule that filters names the wish that a row cannot grant; a rule that scores gives
points. No rule sees another's finding, so their order means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.advice.question import FEATURE
from lmi_build.catalog.systems import FEATURES, LIVES, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lmi_build.advice.question import Question
    from lmi_build.catalog.systems import Port, System

_GUIDE = Source(
    text="djl-serving 3d6ad832 (0.32.0-dlc),"
    " serving/docs/lmi/deployment_guide/backend-selection.md",
    date="2025-09-11",
)
_OURS = Source(text="a judgement of lmi-build", date="2026-11-21")
# More requests than this at one time, and a server without continuous batching is
# out of its depth.
_MANY = 8
# A CPU keeps up with about so many at one time.
_FEW = 4
# Longest usual request over the typical one from which on fixed bounds waste memory.
_WIDE = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """
    A system on one of its devices: a row of the answer.

    Args:
        system: Which.
        port: On what.
    """

    system: System
    port: Port

    @property
    def name(self) -> str:
        """Such as `vllm on gpu`."""
        return f"{self.system.name} on {self.port.device}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """
    What one rule says of one row.

    Args:
        reason: In words.
        source: Where the fact was read.
        points: What a rule that scores gives; 0 from one that filters.
        wishes: What a rule that filters cannot grant, of `Question.wishes`: without
            any one of them it would say nothing. Empty from a rule that scores.
    """

    reason: str
    source: Source
    points: int = 0
    wishes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """
    One rule.

    Args:
        name: Short, shown beside each finding.
        filters: Whether a finding removes the row; else it gives points.
        text: What it asks.
        judge: Says nothing, or one finding for each wish.
    """

    name: str
    filters: bool
    text: str
    judge: Callable[[Option, Question], Iterator[Finding]]


def _family(option: Option, question: Question) -> Iterator[Finding]:
    port, family = option.port, question.family
    if not family or port.loads(family):
        return
    if family in port.excluded:
        reason = f"`{family}` is not for it, whatever its own list says"
        yield Finding(reason=reason, source=port.excluded[family], wishes=("family",))
    else:
        reason = f"`{family}` is not among the models that it lists"
        source = _newest(port.families)
        yield Finding(reason=reason, source=source, wishes=("family",))


def _device(option: Option, question: Question) -> Iterator[Finding]:
    port = option.port
    if question.device and port.device != question.device:
        reason = f"this row is of {port.device}, not of {question.device}"
        yield Finding(reason=reason, source=port.source, wishes=("device",))


def _instance(option: Option, question: Question) -> Iterator[Finding]:
    port = option.port
    if not question.instance:
        return
    group = question.instance.removeprefix("ml.").partition(".")[0]
    reason = ""
    if port.device != question.instance_device:
        reason = f"{question.instance} has {question.instance_device}"
    elif port.instances and group not in port.instances:
        reason = f"it runs on {', '.join(port.instances)}, not on {group}"
    elif _below(question.compute_capability, port.min_compute):
        reason = (
            f"it needs compute capability {port.min_compute},"
            f" {question.instance} has {question.compute_capability}"
        )
    if reason:
        yield Finding(reason=reason, source=port.source, wishes=("instance",))


def _technique(option: Option, question: Question) -> Iterator[Finding]:
    port = option.port
    if question.technique and question.technique not in port.techniques:
        known = ", ".join(name for name in port.techniques if name != "none")
        reason = f"it has no `{question.technique}`; it has {known or 'none'}"
        yield Finding(
            reason=reason, source=_newest(port.techniques), wishes=("technique",)
        )


def _kernels(option: Option, question: Question) -> Iterator[Finding]:
    port, technique = option.port, question.technique
    needs = port.technique_compute.get(technique, "")
    if _below(question.compute_capability, needs):
        yield Finding(
            reason=f"its `{technique}` needs compute capability {needs},"
            f" {question.instance} has {question.compute_capability}",
            source=port.techniques[technique],
            wishes=("instance", "technique"),
        )


def _pairs(option: Option, question: Question) -> Iterator[Finding]:
    """What it has, and not for this family; without either wish all would be well."""
    port, family = option.port, question.family
    if not family or not port.loads(family):
        return
    asked = {f"{FEATURE}{name}": name for name in question.features}
    asked["technique"] = question.technique
    for wish, name in asked.items():
        if name in port.only and not port.has(name, family):
            source = port.techniques.get(name) or port.features[name]
            reason = f"its `{name}` is not for `{family}`"
            yield Finding(reason=reason, source=source, wishes=("family", wish))


def _features(option: Option, question: Question) -> Iterator[Finding]:
    port = option.port
    for name in question.features:
        if name not in port.features:
            yield Finding(
                reason=f"no {name}: {FEATURES[name]}",
                source=_newest(port.features or {"": port.source}),
                wishes=(f"{FEATURE}{name}",),
            )


def _life(option: Option, question: Question) -> Iterator[Finding]:
    life = option.system.life
    if question.life and LIVES.index(life.status) > LIVES.index(question.life):
        reason = f"{life.status}: {life.note}"
        yield Finding(reason=reason, source=life.source, wishes=("life",))


def _built(option: Option, question: Question) -> Iterator[Finding]:
    port, family = option.port, question.family
    if not question.built or port.builds(family):
        return
    if port.builds(""):
        reason = f"lmi-build does not build `{family}` for it"
        yield Finding(reason=reason, source=_OURS, wishes=("built", "family"))
    else:
        reason = "lmi-build does not build for it"
        yield Finding(reason=reason, source=_OURS, wishes=("built",))


def _traffic(option: Option, question: Question) -> Iterator[Finding]:
    told = {
        ("even", True): (3, "compiled for bounds that most requests come near"),
        ("uneven", True): (-3, "compiled for bounds that few requests come near"),
        ("uneven", False): (2, "no bounds to compile for, so lengths may vary"),
        ("unknown", False): (1, "to start with while lengths are not known"),
        ("unknown", True): (-1, "hard to fit to lengths that are not known"),
    }
    points = told.get((question.traffic, option.port.compiled))
    if points:
        yield Finding(reason=points[1], source=_GUIDE, points=points[0])


def _spread(option: Option, question: Question) -> Iterator[Finding]:
    if option.port.compiled and question.spread and question.spread >= _WIDE:
        yield Finding(
            reason=f"room for requests {question.spread:.1f} times the typical one",
            source=_OURS,
            points=-1,
        )


def _concurrency(option: Option, question: Question) -> Iterator[Finding]:
    number = question.concurrency
    if option.port.has("continuous-batching", question.family):
        source = option.port.features["continuous-batching"]
        points = 1 if number < 2 else 2  # noqa: PLR2004 - two make a batch
        yield Finding(reason="batches continuously", source=source, points=points)
    elif number >= 2:  # noqa: PLR2004 - two make a batch
        points = -2 if number < _MANY else -4
        reason = f"does not batch continuously, for {number} requests at one time"
        yield Finding(reason=reason, source=_OURS, points=points)


def _latency(option: Option, question: Question) -> Iterator[Finding]:
    if question.goal != "latency":
        return
    if option.port.compiled and question.traffic == "even":
        reason = "graphs of fixed shapes, which requests nearly fill"
        yield Finding(reason=reason, source=_GUIDE, points=2)
    if "tensor-parallel" in option.port.features:
        source = option.port.features["tensor-parallel"]
        yield Finding(reason="splits a layer over devices", source=source, points=1)


def _throughput(option: Option, question: Question) -> Iterator[Finding]:
    batches = option.port.has("continuous-batching", question.family)
    if question.goal == "throughput" and batches:
        source = option.port.features["continuous-batching"]
        yield Finding(reason="keeps its batch full", source=source, points=2)


def _cost(option: Option, question: Question) -> Iterator[Finding]:
    if question.goal != "cost":
        return
    port = option.port
    if port.device == "neuron":
        reason = "Inferentia is typically cheaper than like GPU instances"
        yield Finding(reason=reason, source=_GUIDE, points=3)
    if port.device == "cpu" and question.concurrency <= _FEW:
        reason = f"no accelerator to pay for, and {_FEW} requests at one time or fewer"
        yield Finding(reason=reason, source=_OURS, points=2)
    if small := sorted({"gptq", "awq"} & set(port.techniques)):
        reason = f"4-bit weights ({', '.join(small)}) fit a smaller instance"
        yield Finding(reason=reason, source=port.techniques[small[0]], points=1)


def _speed(option: Option, question: Question) -> Iterator[Finding]:
    if option.port.device == "cpu" and question.goal != "cost":
        reason = "a CPU reads weights some ten times slower than an accelerator"
        yield Finding(reason=reason, source=_OURS, points=-3)


def _upkeep(option: Option, question: Question) -> Iterator[Finding]:
    del question
    life = option.system.life
    points = {"maintained": 3, "maintenance": 0, "ended": -3}[life.status]
    yield Finding(
        reason=f"{life.status}: {life.note}", source=life.source, points=points
    )


def _hosting(option: Option, question: Question) -> Iterator[Finding]:
    port = option.port
    if port.container:
        reason = f"SageMaker has an image: {port.container}"
        yield Finding(reason=reason, source=port.source, points=2)
    elif option.system.kind == "library" and not port.builds(question.family):
        reason = "a library: the server has to be written"
        yield Finding(reason=reason, source=port.source, points=-2)


def _ours(option: Option, question: Question) -> Iterator[Finding]:
    if option.port.builds(question.family):
        reason = f"lmi-build builds for it: backend `{option.port.backend}`"
        yield Finding(reason=reason, source=_OURS, points=2)


def _resort(option: Option, question: Question) -> Iterator[Finding]:
    del question
    if option.system.last_resort:
        reason = "its own guide: only where no other loads the model"
        yield Finding(reason=reason, source=option.system.life.source, points=-3)


def _newest(words: Mapping[str, Source]) -> Source:
    """Where a word was looked for in vain: the newest source of the list."""
    return max(words.values(), key=lambda source: (source.date, source.text))


def _below(have: str, needs: str) -> bool:
    """Whether one compute capability is less than another; unknown ones are not."""
    if not have or not needs:
        return False
    return _number(have) < _number(needs)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


RULES = (
    Rule(name="family", filters=True, text="Does it load the model?", judge=_family),
    Rule(name="device", filters=True, text="Does it run there?", judge=_device),
    Rule(name="instance", filters=True, text="On this instance?", judge=_instance),
    Rule(name="technique", filters=True, text="This rounding?", judge=_technique),
    Rule(name="pairs", filters=True, text="Both for this model?", judge=_pairs),
    Rule(name="kernels", filters=True, text="On this GPU?", judge=_kernels),
    Rule(name="features", filters=True, text="Every feature?", judge=_features),
    Rule(name="life", filters=True, text="Alive enough?", judge=_life),
    Rule(name="built", filters=True, text="Only those of lmi-build?", judge=_built),
    Rule(name="traffic", filters=False, text="Even lengths?", judge=_traffic),
    Rule(name="spread", filters=False, text="A long tail?", judge=_spread),
    Rule(name="batching", filters=False, text="Many at once?", judge=_concurrency),
    Rule(name="latency", filters=False, text="For latency?", judge=_latency),
    Rule(name="throughput", filters=False, text="For throughput?", judge=_throughput),
    Rule(name="cost", filters=False, text="For cost?", judge=_cost),
    Rule(name="speed", filters=False, text="Fast enough?", judge=_speed),
    Rule(name="upkeep", filters=False, text="Still maintained?", judge=_upkeep),
    Rule(name="hosting", filters=False, text="An image for it?", judge=_hosting),
    Rule(name="ours", filters=False, text="Built here?", judge=_ours),
    Rule(name="last-resort", filters=False, text="A last resort?", judge=_resort),
)
