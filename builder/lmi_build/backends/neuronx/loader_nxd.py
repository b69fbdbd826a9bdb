"""Decoders by optimum-neuron's export and by NxD Inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.calls import plain
from lmi_build.backends.neuronx.compatibility import compatibility
from lmi_build.backends.neuronx.compile_plan import CompilePlan, compile_plan
from lmi_build.backends.neuronx.models import model_problems
from lmi_build.backends.neuronx.nxd_buckets import nxd_heads
from lmi_build.backends.neuronx.nxd_request import TORCH_DTYPES, NxdRequest
from lmi_build.backends.neuronx.nxdi import (
    lower_nxdi,
    nxdi_expected,
    nxdi_findings,
    nxdi_problems,
)
from lmi_build.backends.neuronx.nxdi_serving import nxdi_properties
from lmi_build.backends.neuronx.optimum import (
    generation,
    lower_optimum,
    optimum_expected,
    optimum_findings,
    optimum_problems,
)
from lmi_build.backends.neuronx.optimum_serving import (
    optimum_environment,
    optimum_properties,
)
from lmi_build.backends.neuronx.recipe_checks import serve_option_problems
from lmi_build.backends.neuronx.topology import (
    core_memory_bytes,
    topology_finding,
    topology_problems,
)
from lmi_build.errors import Problem
from lmi_build.spi import Proof, Serving
from lmi_build.text import join_words
from lmi_build.units import format_bytes
from lmi_build.values.stage import Estimate, Note

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from lmi_build.backends.neuronx.calls import NeuronCall
    from lmi_build.backends.neuronx.loaders import Request

PROOF_ENTRY = "lmi_build.verify.neuron_exports:run"
_AMPS = {name: amp for amp, name in TORCH_DTYPES.items()}
# Rules of thumb, not measured: the exporters hold the model as it is read and as it is
# split, beside PyTorch and one compiler process for each of two graphs.
_HOST_COPIES, _HOST_BASE_BYTES = 2, 6 << 30
_DISK_BASE_BYTES = 1 << 30
# The runtime keeps part of a core's memory, and the graphs' own code lies there too.
_USABLE_SHARE = 0.9


class NxdLoader:
    """
    What the two exporters have in common.

    Args:
        name: `optimum` or `nxdi`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def problems(self, request: Request) -> Iterator[Problem]:
        """Yield every reason why it cannot be built, by dotted recipe path."""
        recipe, target = request.recipe, request.target
        asked_type = request.model.geometry.model_type
        problems = [
            *serve_option_problems(recipe),
            *model_problems(asked_type, self.name, target.release),
            *_dtype_problems(request),
            *topology_problems(target.instance, recipe.compile.tensor_parallel_size),
            *_bound_problems(request),
        ]
        yield from problems
        if problems:
            return
        asked = nxd_request(request)
        check = optimum_problems if self.name == "optimum" else nxdi_problems
        yield from check(asked)
        yield from _memory_problems(request, self._copies_keys(request))

    def plan(self, request: Request) -> CompilePlan:
        """What its toolchain is told; `problems` found nothing."""
        return compile_plan(
            self._call(request),
            request.target.release,
            num_cores=request.recipe.compile.tensor_parallel_size,
            expected=self._expected(request),
        )

    def estimate(self, request: Request) -> Estimate:
        """Bytes on disk and in memory of compiling it; rules of thumb."""
        weights = _weight_bytes(request)
        return Estimate(
            disk_bytes=weights + _DISK_BASE_BYTES,
            ram_bytes=_HOST_COPIES * weights + _HOST_BASE_BYTES,
        )

    def notes(self, request: Request) -> tuple[Note, ...]:
        """What `plan` says about it."""
        asked, target = nxd_request(request), request.target
        findings = optimum_findings if self.name == "optimum" else nxdi_findings
        size = request.recipe.compile.tensor_parallel_size
        lines = [*findings(asked), topology_finding(target.instance, size)]
        derived = f"graphs = {self._call(request).num_graphs}"
        return (
            Note(level="info", code="compile.derived", message=derived),
            *(
                Note(level="warning", code="neuronx.finding", message=line)
                for line in lines
                if line
            ),
        )

    def serving(self, request: Request) -> Serving:
        """What the package needs."""
        asked, target = nxd_request(request), request.target
        # The container of vLLM is told by variables, LMI by its file.
        by_variables = self.name == "optimum" and generation(asked.release) == "nxd"
        properties = {}
        if not by_variables:
            write = optimum_properties if self.name == "optimum" else nxdi_properties
            properties = write(asked)
        return Serving(
            handler="",
            requirements=(),
            properties=properties,
            environment=optimum_environment(asked) if by_variables else {},
            engine_dir=".",
            settings={},
            tokenizer_class="known",
            model_files=("config.json", "generation_config.json"),
            compatibility=compatibility(target, num_cores=asked.tensor_parallel_size),
            rehearsal=request.rehearse,
        )

    def proof(self, request: Request) -> Proof:
        """How the packed artifact is tried."""
        target = request.target
        return Proof(
            distributions=(),
            entry=PROOF_ENTRY,
            params={
                "release": target.release.name,
                "family": target.family,
                "rehearsal": request.rehearse,
                "call": plain(self._call(request).to_json()),
            },
        )

    def _expected(self, request: Request) -> Mapping[str, Any]:
        say = optimum_expected if self.name == "optimum" else nxdi_expected
        return say(nxd_request(request))

    def _copies_keys(self, request: Request) -> bool:
        """Whether it is NeuronX Distributed that spreads heads over cores."""
        return self.name == "nxdi" or generation(request.target.release) == "nxd"

    def _call(self, request: Request) -> NeuronCall:
        lower = lower_optimum if self.name == "optimum" else lower_nxdi
        return lower(nxd_request(request))


def nxd_request(request: Request) -> NxdRequest:
    """The decoder that is asked for, in the words of what lowers it."""
    recipe, model = request.recipe, request.model
    return NxdRequest(
        release=request.target.release,
        model_type=model.geometry.model_type,
        num_layers=model.geometry.num_layers,
        bounds=recipe.bounds,
        tensor_parallel_size=recipe.compile.tensor_parallel_size,
        family=request.target.family,
        amp=_AMPS[model.dtype],
        method=recipe.quantize.method,
        options=recipe.compile.options,
    )


def _dtype_problems(request: Request) -> Iterator[Problem]:
    if request.model.dtype not in _AMPS:
        yield Problem(
            code="neuronx.dtype",
            message=f"weights are {request.model.dtype}; the exporters compute in"
            f" {join_words(tuple(_AMPS))}",
            path="model.dtype",
            hint="write `dtype: bfloat16`",
        )


def _bound_problems(request: Request) -> Iterator[Problem]:
    bounds = request.recipe.bounds
    for name, value, usual in (
        ("max_beam_width", bounds.max_beam_width, 1),
        ("max_num_tokens", bounds.max_num_tokens, None),
    ):
        if value != usual:
            yield Problem(
                code="neuronx.bound",
                message=f"graphs have no place for `{name}` {value}",
                path=f"bounds.{name}",
                hint="remove the line",
                unsupported=True,
            )


def _memory_problems(request: Request, copies_keys: bool) -> Iterator[Problem]:  # noqa: FBT001
    """Weights and cache alone, without any rule of thumb."""
    spec, target = request.recipe.compile, request.target
    cores = spec.tensor_parallel_size
    keys = request.model.geometry.num_key_value_heads
    if copies_keys:
        queries = request.model.geometry.num_attention_heads
        keys = nxd_heads(cores, queries, keys).num_key_value_heads
    needed = _weight_bytes(request) + _cache_bytes(request, keys)
    room = int(core_memory_bytes(target.instance) * cores * _USABLE_SHARE)
    if needed > room:
        yield Problem(
            code="neuronx.core-memory",
            message=f"weights and cache take {format_bytes(needed)}, {cores} cores of"
            f" {target.instance.name} have room for {format_bytes(room)}",
            path="compile.tensor_parallel_size",
            hint="split over more cores, lower the bounds, or take a larger instance",
        )


def _weight_bytes(request: Request) -> int:
    wide = {"float32": 4, "float16": 2, "bfloat16": 2}[request.model.dtype]
    return sum(tensor.num_elements for tensor in request.model.tensors) * wide


def _cache_bytes(request: Request, num_key_value_heads: int) -> int:
    geometry, bounds = request.model.geometry, request.recipe.bounds
    wide = {"float32": 4, "float16": 2, "bfloat16": 2}[request.model.dtype]
    rows = bounds.max_batch_size * bounds.max_seq_len * num_key_value_heads
    return 2 * geometry.num_layers * rows * geometry.head_dim * wide
