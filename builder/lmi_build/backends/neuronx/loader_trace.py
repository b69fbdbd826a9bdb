"""Encoders by `torch_neuronx.trace`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.calls import NeuronCall, plain
from lmi_build.backends.neuronx.compatibility import compatibility
from lmi_build.backends.neuronx.compile_plan import CompilePlan, compile_plan
from lmi_build.backends.neuronx.trace import (
    lower_trace,
    trace_device_needed,
    trace_estimate,
    trace_expected,
    trace_notes,
    trace_serving,
)
from lmi_build.backends.neuronx.trace_problems import trace_problems
from lmi_build.spi import Proof, Serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.neuronx.loaders import Request
    from lmi_build.errors import Problem
    from lmi_build.values.stage import Estimate, Note

PROOF_ENTRY = "lmi_build.verify.neuronx_encoder:run"


class TraceLoader:
    """One graph for each length; a handler of ours answers."""

    def problems(self, request: Request) -> Iterator[Problem]:
        """Yield every reason why it cannot be built, by dotted recipe path."""
        instance = request.target.instance
        yield from trace_problems(request.recipe, request.model, instance=instance)

    def plan(self, request: Request) -> CompilePlan:
        """What its toolchain is told; `problems` found nothing."""
        release, call = request.target.release, self._call(request)
        return compile_plan(
            call,
            release,
            num_cores=1,
            device_needed=trace_device_needed(release),
            expected=trace_expected(call),
        )

    def _call(self, request: Request) -> NeuronCall:
        family = request.target.family
        return lower_trace(request.recipe, request.model, family=family)

    def estimate(self, request: Request) -> Estimate:
        """Bytes on disk and in memory of compiling it."""
        return trace_estimate(request.recipe, request.model)

    def notes(self, request: Request) -> tuple[Note, ...]:
        """What `plan` says about it."""
        return trace_notes(request.recipe)

    def serving(self, request: Request) -> Serving:
        """What the package needs."""
        return replace(
            trace_serving(request.recipe),
            compatibility=compatibility(request.target, num_cores=1),
            rehearsal=request.rehearse,
        )

    def proof(self, request: Request) -> Proof:
        """How the packed artifact is tried."""
        return Proof(
            distributions=(),
            entry=PROOF_ENTRY,
            params={
                "rehearsal": request.rehearse,
                "call": plain(self._call(request).to_json()),
            },
        )
