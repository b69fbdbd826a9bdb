"""The share of a GPU that vLLM is given, from what the model takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.backends.vllm.bounds import RUNTIME, lower_bounds
from lmi_build.backends.vllm.linears import quantized_linears
from lmi_build.catalog.runtimes import Interval, runtimes
from lmi_build.sizing.cache import cache_shape
from lmi_build.sizing.fit import CANNOT, FITS, Place, fit
from lmi_build.sizing.memory import Subject
from lmi_build.sizing.tables import weight_table

if TYPE_CHECKING:
    from lmi_build.backends.vllm.target import Target
    from lmi_build.sizing.fit import FitReport
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

# vLLM's own default first; above the last, other processes' contexts have no room.
SHARES = (0.9, 0.92, 0.95)
# PyTorch's part of what the maker says; as `plan/sizes.py` counts it.
_USABLE = {"T4": 0.9}
_USABLE_SHARE = 0.96
_OPTION = "gpu_memory_utilization"


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """
    What vLLM is told, and why.

    Args:
        value: `gpu_memory_utilization`.
        report: What the model takes with it.
    """

    value: float
    report: FitReport

    @property
    def cannot(self) -> bool:
        """Whether the bounds have no room for certain."""
        return self.report.verdict == CANNOT


def choose_share(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Share:
    """
    The least share of the GPU in which the bounds fit.

    What the recipe says is taken as it is. Where no share is certain to do, the first
    that may do is taken, and the largest where none may.

    Args:
        recipe: Bounds and ranks.
        model: The pinned model.
        scheme: Of the checkpoint.
        target: Whose GPU it is.
    """
    given = recipe.serve.options.get(_OPTION)
    if isinstance(given, int | float) and not isinstance(given, bool):
        return _with(float(given), recipe, model, scheme, target)
    tried = [_with(value, recipe, model, scheme, target) for value in SHARES]
    sure = next((row for row in tried if row.report.verdict == FITS), None)
    possible = next((row for row in tried if not row.cannot), tried[-1])
    return sure or possible


def _with(
    value: float,
    recipe: Recipe,
    model: ModelFacts,
    scheme: QuantScheme,
    target: Target,
) -> Share:
    machine, spec = target.instance, recipe.compile
    runtime = replace(runtimes()[RUNTIME], free_share=(round(1 - value, 6), 0.0))
    usable = _USABLE.get(machine.device, _USABLE_SHARE)
    memory = machine.device_memory_bytes
    place = Place(
        runtime=runtime,
        tp=spec.tensor_parallel_size,
        pp=spec.pipeline_parallel_size,
        capacity=Interval(low=int(memory * usable), high=memory),
    )
    lowered = lower_bounds(recipe.bounds, target)
    bounds = replace(recipe.bounds, max_num_tokens=lowered.max_num_tokens)
    subject = subject_of(recipe, model, scheme)
    return Share(value=value, report=fit(subject, bounds, place))


def subject_of(recipe: Recipe, model: ModelFacts, scheme: QuantScheme) -> Subject:
    """The model as it lies in the folder."""
    came_so = model.config.get("quantization_config") is not None
    linears = {} if came_so else quantized_linears(recipe, model, scheme)
    return Subject(
        table=weight_table(model, linears),
        cache=cache_shape(model.config, model.geometry),
        geometry=model.geometry,
        scheme=scheme,
    )
