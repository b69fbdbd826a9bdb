"""Recipes for the system that an advice names; pure."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from lmi_build.catalog.instances import instances
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.catalog.releases import releases
from lmi_build.catalog.vllm_releases import vllm_releases
from lmi_build.recipe.template import advised
from lmi_build.values.recipe import CompileSpec, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.advice.advisor import Verdict
    from lmi_build.advice.question import Question
    from lmi_build.catalog.systems import Port
    from lmi_build.values.bounds import Bounds

# Where no instance was asked for: one device of a current kind, cheapest first.
_TARGETS = {
    "gpu": ("ml.g5.2xlarge", "ml.g6.2xlarge"),
    "neuron": ("ml.inf2.8xlarge",),
    "cpu": ("cpu",),
}


def drafts(
    verdict: Verdict,
    question: Question,
    *,
    name: str,
    source: str,
    method: str,
    bounds: Bounds,
    dtype: str,
) -> Iterator[str]:
    """
    Recipes to try, the newest release and the most ranks first.

    Which of them a backend takes is for the backend to say.

    Args:
        verdict: Of a row that lmi-build builds for.
        question: What was asked.
        name: Of the artifact.
        source: Of the model.
        method: As `quantize.method` takes it.
        bounds: What the engine shall hold.
        dtype: Float type of the model's weights; empty if unknown.
    """
    port = verdict.option.port
    title, score = verdict.option.system.title, verdict.score
    because = [
        f"Advised: {title} on {port.device}, {score} points.",
        *(
            f"{finding.points:+d} {rule}: {finding.reason}"
            for rule, finding in verdict.points
            if finding.points
        ),
    ]
    for target in _targets(port, question):
        tries = product(_releases(port), _ranks(target))
        for release, ranks in tries:
            spec = CompileSpec(
                backend=port.backend,
                target=target,
                release=release,
                tensor_parallel_size=ranks,
            )
            # Kernels of accelerators compute in 16 bits.
            short = dtype == "float32" and target != "cpu"
            yield advised(
                ModelSpec(source=source, dtype="float16" if short else "auto"),
                name=name,
                method=method,
                bounds=bounds,
                compile_for=spec,
                because=because,
            )


def _targets(port: Port, question: Question) -> tuple[str, ...]:
    """The instance asked for, or usual ones; an instance without devices is `cpu`."""
    if question.instance and port.device != "cpu":
        return (question.instance,)
    return _TARGETS[port.device]


def _releases(port: Port) -> tuple[str | None, ...]:
    """Published releases of a port's image, the one that it names first."""
    found = {
        "tensorrt-llm": [
            row.name
            for row in releases().values()
            if row.container == port.container and row.published
        ],
        "neuronx": [
            row.name
            for row in neuron_releases().values()
            if row.repository == port.container and row.published
        ],
        "vllm": [
            row.name
            for row in vllm_releases().values()
            if row.container == port.container and row.published
        ],
    }.get(port.backend, [])
    if port.release:
        found = [port.release, *(name for name in found if name != port.release)]
    return tuple(found) or (None,)


def _ranks(target: str) -> tuple[int, ...]:
    """Every core of an instance's devices, since they are paid for; else fewer."""
    row = instances().get(target)
    ranks = [row.num_cores if row is not None and row.num_cores else 1]
    while ranks[-1] > 1:
        ranks.append(ranks[-1] // 2)
    return tuple(ranks)
