"""Decoders by Transformers NeuronX, which LMI's own handler loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.calls import plain
from lmi_build.backends.neuronx.compatibility import compatibility
from lmi_build.backends.neuronx.compile_plan import CompilePlan, compile_plan
from lmi_build.backends.neuronx.layout import artifact_layout, neuron_block
from lmi_build.backends.neuronx.options import option_problems
from lmi_build.backends.neuronx.recipe_checks import serve_option_problems
from lmi_build.backends.neuronx.serving_keys import serving_problems, serving_properties
from lmi_build.backends.neuronx.tnx import (
    compiler_workers,
    device_needed,
    effective,
    explain_tnx,
    lower_tnx,
    tnx_disk_bytes,
    tnx_findings,
)
from lmi_build.backends.neuronx.tnx_problems import tnx_problems
from lmi_build.backends.neuronx.tnx_request import TnxRequest, tnx_host_memory
from lmi_build.spi import Proof, Serving
from lmi_build.values.recipe import COMPILER
from lmi_build.values.stage import Estimate, Note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.neuronx.loaders import Request
    from lmi_build.errors import Problem

PROOF_ENTRY = "lmi_build.verify.neuronx:run"


class TnxLoader:
    """Every core's weights beside the graphs; a handler of LMI's answers."""

    def problems(self, request: Request) -> Iterator[Problem]:
        """Yield every reason why it cannot be built, by dotted recipe path."""
        asked, spec = tnx_request(request), request.recipe.compile
        problems = [
            *serve_option_problems(request.recipe),
            *tnx_problems(asked),
            *option_problems(
                spec.options, asked.release, model_type=asked.geometry.model_type
            ),
        ]
        yield from problems
        if not problems:
            call = lower_tnx(asked)
            yield from serving_problems(asked.release, call, asked.config)

    def plan(self, request: Request) -> CompilePlan:
        """What its toolchain is told; `problems` found nothing."""
        asked = tnx_request(request)
        call = lower_tnx(asked)
        return compile_plan(
            call,
            asked.release,
            num_cores=asked.tensor_parallel_size,
            device_needed=device_needed(asked),
            block=neuron_block(asked.release, call.arguments),
            expected=effective(asked),
        )

    def estimate(self, request: Request) -> Estimate:
        """Bytes on disk and in memory of compiling it."""
        asked = tnx_request(request)
        host = tnx_host_memory(asked)
        workers = compiler_workers(asked) or host.num_graphs
        return Estimate(
            disk_bytes=tnx_disk_bytes(asked), ram_bytes=host.needed(workers)
        )

    def notes(self, request: Request) -> tuple[Note, ...]:
        """What `plan` says about it."""
        asked = tnx_request(request)
        derived = (
            Note(level="info", code="compile.derived", message=line)
            for line in explain_tnx(asked)
        )
        findings = (
            Note(level="warning", code="neuronx.finding", message=line)
            for line in tnx_findings(asked)
        )
        return (*derived, *findings)

    def serving(self, request: Request) -> Serving:
        """What the package needs."""
        asked, target = tnx_request(request), request.target
        layout = artifact_layout(asked.release, num_layers=asked.geometry.num_layers)
        call = lower_tnx(asked)
        return Serving(
            handler="",
            requirements=(),
            properties=serving_properties(asked.release, call, asked.config),
            engine_dir=layout.engine_dir,
            settings={},
            tokenizer_dir=layout.tokenizer_dir,
            tokenizer_class="known",
            model_files=layout.model_files,
            compatibility=compatibility(target, num_cores=asked.tensor_parallel_size),
            rehearsal=request.rehearse,
        )

    def proof(self, request: Request) -> Proof:
        """How the packed artifact is tried."""
        asked = tnx_request(request)
        return Proof(
            distributions=(),
            entry=PROOF_ENTRY,
            params={
                "release": asked.release.name,
                "rehearsal": request.rehearse,
                "call": plain(lower_tnx(asked).to_json()),
                "num_layers": asked.geometry.num_layers,
                "int8": asked.int8,
            },
        )


def tnx_request(request: Request) -> TnxRequest:
    """The decoder that is asked for, in the words of what lowers it."""
    recipe, model = request.recipe, request.model
    return TnxRequest(
        bounds=recipe.bounds,
        geometry=model.geometry,
        config=model.config,
        release=request.target.release,
        instance=request.target.instance,
        tensor_parallel_size=recipe.compile.tensor_parallel_size,
        dtype=model.dtype,
        int8=recipe.quantize.provider == COMPILER,
        options=recipe.compile.options,
    )
