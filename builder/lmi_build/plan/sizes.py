"""
The sizes of a recipe's model on its target, from headers alone.

The bridge between what providers know (which linears a method rounds, what a Neuron
core pads) and the plain arithmetic of `sizing`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.encoders import is_encoder
from lmi_build.catalog.architectures import find_architecture
from lmi_build.catalog.devices import devices
from lmi_build.catalog.runtimes import Interval
from lmi_build.quantizers.builtin_checks import linears_of
from lmi_build.quantizers.targets import head_of
from lmi_build.sizing.cache import cache_shape
from lmi_build.sizing.change import Change, Option, changes
from lmi_build.sizing.fit import FITS, FitReport, Largest, Place, fit, largest
from lmi_build.sizing.memory import Subject
from lmi_build.sizing.tables import weight_table
from lmi_build.sizing.weights import checkpoint_bytes
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import COMPILER
from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.spi import Backend, Host, Quantizer
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec, Recipe

# What PyTorch says a device has, over what its maker says. Sources: the totals of
# allocator messages in public reports: T4 14.6 of 16 GiB (error correction takes the
# most of it), A10G 22.0 of 22.4, L4 22.0, A100 39.4 of 40, H100 79.1 of 80.
_USABLE = {"T4": 0.9}
_USABLE_SHARE = 0.96
_SWITCH = "NVSwitch"


def float_scheme(facts: ModelFacts) -> QuantScheme:
    """What a model is that nothing is done to."""
    return QuantScheme(
        weight_bits=32 if facts.dtype == "float32" else 16,
        weight_dtype="float",
        group_size=-1,
        sym=True,
        activation_bits=16,
        packing="none",
    )


def subject_of(
    facts: ModelFacts, spec: QuantSpec, quantizer: Callable[[str], Quantizer]
) -> Subject:
    """
    A model as it will be served.

    Args:
        facts: The model.
        spec: How its weights become smaller.
        quantizer: Finds a quantizer by name.
    """
    scheme = replace(float_scheme(facts), kv_cache_dtype=spec.kv_cache_dtype)
    if spec.lm_head:
        facts = _with_own_head(facts)
    linears: dict[str, tuple[int, int]] = {}
    scales = 0
    if spec.method != "none" and spec.provider != COMPILER:
        scheme = quantizer(spec.provider).scheme(spec, facts)
        linears = {
            linear.name: (linear.num_outputs, linear.num_inputs)
            for linear in linears_of(spec, facts)
        }
        mapped = find_architecture(facts.config) is not None
        if scheme.kv_cache_dtype != "auto" and mapped:
            scales = 2 * facts.geometry.num_layers
    cache = cache_shape(facts.config, facts.geometry)
    if is_encoder(facts.config):
        cache = replace(cache, num_full=0, num_sliding=0)
    if facts.config.get("is_encoder_decoder"):
        why = "keys and values that a decoder reads of its encoder are not counted"
        cache = replace(cache, unknown=(*cache.unknown, why))
    return Subject(
        table=weight_table(facts, linears, num_extra_scales=scales),
        cache=cache,
        geometry=facts.geometry,
        scheme=scheme,
    )


def _with_own_head(facts: ModelFacts) -> ModelFacts:
    """The same model with its head apart from the embedding, as codes need it."""
    architecture = find_architecture(facts.config)
    shapes = {fact.name: (fact.dtype, fact.shape) for fact in facts.tensors}
    head = head_of(shapes, architecture) if architecture else None
    if head is None or not head.shared:
        return facts
    (shared,) = [fact for fact in facts.tensors if fact.name == head.shared]
    own = replace(shared, name=f"{head.name}.weight")
    return replace(
        facts,
        config={**facts.config, "tie_word_embeddings": False},
        geometry=replace(facts.geometry, tie_word_embeddings=False),
        tensors=tuple(sorted((*facts.tensors, own), key=lambda fact: fact.name)),
    )


def is_switched(instance: Instance) -> bool:
    """Whether a switch joins the devices of a machine."""
    row = devices().get(instance.rates)
    return row is not None and _SWITCH in row.link


def place_of(
    instance: Instance | None,
    runtime: Runtime,
    *,
    tp: int,
    pp: int = 1,
    memory_bytes: int = 0,
) -> Place:
    """
    What a process can have of each device.

    Args:
        instance: The machine; None where it is not known.
        runtime: Who serves.
        tp: Devices that a layer is split over.
        pp: Stages that the layers are split over.
        memory_bytes: What a device has, instead of what the instance says.
    """
    if instance is not None and is_switched(instance):
        runtime = replace(runtime, communication=runtime.switched_communication)
    if memory_bytes:
        exact = Interval(low=memory_bytes, high=memory_bytes)
        return Place(runtime=runtime, tp=tp, pp=pp, capacity=exact)
    if instance is None or not instance.num_devices:
        return Place(runtime=runtime, tp=tp, pp=pp, capacity=None)
    size = instance.device_memory_bytes // max(1, instance.cores_per_device)
    share = _USABLE.get(instance.device, _USABLE_SHARE)
    return Place(
        runtime=runtime,
        tp=tp,
        pp=pp,
        capacity=Interval(low=int(size * share), high=size),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildNeed:
    """
    What the machine that builds must have.

    Args:
        ram_bytes: Peak memory of the stage that needs most.
        ram_stage: That stage.
        disk_bytes: What stays of all stages, with the most that one needs beside.
        download_bytes: What comes over the network.
    """

    ram_bytes: int
    ram_stage: str
    disk_bytes: int
    download_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeReport:
    """
    What a model takes.

    Args:
        name: Of the recipe or the model.
        subject: The model.
        bounds: What is served.
        place: Where.
        instance: The machine; None where only the numbers are asked for.
        fit: The verdict.
        checkpoint_bytes: Tensors of the checkpoint on disk.
        build: What building takes; None where no stage can be named.
        changes: What would fit, where this does not for certain.
        largest: The answer to a question, where there was one.
    """

    name: str
    subject: Subject
    bounds: Bounds
    place: Place
    instance: Instance | None
    fit: FitReport
    checkpoint_bytes: int
    build: BuildNeed | None = None
    changes: tuple[Change, ...] = ()
    largest: Largest | None = None

    @property
    def unit(self) -> str:
        """What a rank has to itself: a device, or a core where devices have several."""
        found = self.instance
        return "core" if found is not None and found.cores_per_device > 1 else "device"

    @property
    def ranks(self) -> str:
        """Where all ranks lie, such as `4 x A10G of ml.g5.12xlarge`."""
        many = self.place.tp * self.place.pp
        if self.instance is None:
            return f"{many} devices"
        what = f"{many} x" if self.unit == "device" else f"{many} cores of"
        return f"{what} {self.instance.device} of {self.instance.name}"


def size_of(
    name: str, subject: Subject, bounds: Bounds, place: Place, instance: Instance | None
) -> SizeReport:
    """Hold a model against a place."""
    return SizeReport(
        name=name,
        subject=subject,
        bounds=bounds,
        place=place,
        instance=instance,
        fit=fit(subject, bounds, place),
        checkpoint_bytes=checkpoint_bytes(subject.table, subject.scheme),
    )


def answer(report: SizeReport, question: str) -> SizeReport:
    """
    The same report with the largest value of one bound.

    Args:
        report: What was found; its place has a capacity.
        question: `batch`, `input` or `output`.
    """
    found = largest(question, report.subject, report.bounds, report.place)
    return replace(report, largest=found)


def advise(
    report: SizeReport,
    forms: Iterator[tuple[str, Subject]],
    machines: Iterable[Instance],
) -> SizeReport:
    """
    The same report with the changes that fit, unless it fits already.

    Args:
        report: What was found.
        forms: Other forms of the model by the recipe's words for them, such as
            `gptq, bits 4`, largest first.
        machines: Instances that could be taken instead.
    """
    if report.fit.verdict == FITS or report.place.capacity is None:
        return report
    options = (*_forms(report, forms), *_places(report, machines))
    found = changes(report.subject, report.bounds, report.place, options)
    return replace(report, changes=tuple(found))


def _forms(
    report: SizeReport, forms: Iterator[tuple[str, Subject]]
) -> Iterator[Option]:
    """Forms of the model that take less."""
    own = report.subject
    for words, subject in forms:
        if checkpoint_bytes(subject.table, subject.scheme) < report.checkpoint_bytes:
            yield Option(
                path="quantize.method",
                value=words,
                subject=replace(subject, adapters=own.adapters, draft=own.draft),
                place=report.place,
            )


def _places(report: SizeReport, machines: Iterable[Instance]) -> Iterator[Option]:
    """More devices of this machine; then the next machines of its kind."""
    here, place = report.instance, report.place
    if here is None:
        return
    heads = report.subject.table.heads.num_heads
    for tp in splits(here, heads, place.pp):
        if tp > place.tp:
            yield Option(
                path="compile.tensor_parallel_size",
                value=str(tp),
                subject=report.subject,
                place=place_of(here, place.runtime, tp=tp, pp=place.pp),
            )
    others = sorted(
        (row for row in machines if row.accelerator == here.accelerator),
        key=lambda row: (row.num_devices * row.device_memory_bytes, row.memory_bytes),
    )
    for row in others:
        more = row.num_devices * row.device_memory_bytes
        if more <= here.num_devices * here.device_memory_bytes:
            continue
        for tp in splits(row, heads, place.pp):
            found = place_of(row, place.runtime, tp=tp, pp=place.pp)
            if fit(report.subject, report.bounds, found).verdict == FITS:
                yield Option(
                    path="compile.target",
                    value=f"{row.name}, tensor_parallel_size: {tp}",
                    subject=report.subject,
                    place=found,
                )
                return


def splits(instance: Instance, num_heads: int, pp: int) -> tuple[int, ...]:
    """
    Ranks that an instance has devices for and heads divide over.

    Args:
        instance: The machine.
        num_heads: Attention heads of the model.
        pp: Stages that the layers are split over.
    """
    most = max(1, instance.num_cores)
    return tuple(
        tp for tp in (1, 2, 4, 8, 16) if tp * pp <= most and num_heads % tp == 0
    )


def build_need(
    recipe: Recipe,
    facts: ModelFacts,
    quantizer: Quantizer,
    backend: Backend,
    host: Host,
) -> BuildNeed | None:
    """
    What building takes, by each provider's own estimate.

    Args:
        recipe: Its quantization is settled.
        facts: The model.
        quantizer: Of the recipe.
        backend: Of the recipe.
        host: The machine, as far as backends may know it.

    Returns:
        None where the backend refuses the recipe: `plan` says why.
    """
    spec = recipe.quantize
    scheme, stages = float_scheme(facts), {}
    stages["fetch"] = Estimate(
        download_bytes=0 if facts.kind in {"folder", "gguf"} else facts.fetch_bytes,
        disk_bytes=facts.fetch_bytes,
    )
    if spec.method != "none" and spec.provider != COMPILER:
        scheme = quantizer.scheme(spec, facts)
        stages["quantize"] = quantizer.estimate(spec, facts)
    if [*backend.check(recipe, facts, scheme)]:
        return None
    for stage in backend.stages(recipe, facts, scheme, host):
        stages[stage.kind] = stage.estimate
    most = max(stages, key=lambda kind: stages[kind].ram_bytes)
    scratch = max(stage.scratch_bytes for stage in stages.values())
    return BuildNeed(
        ram_bytes=stages[most].ram_bytes,
        ram_stage=most,
        disk_bytes=sum(stage.disk_bytes for stage in stages.values()) + scratch,
        download_bytes=sum(stage.download_bytes for stage in stages.values()),
    )
