"""The backend `neuronx`, as the planner knows it: without its toolchains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.compile_worker import ENTRY as COMPILE_ENTRY
from lmi_build.backends.neuronx.compile_worker import SALT as COMPILE_SALT
from lmi_build.backends.neuronx.diagnosis import diagnose
from lmi_build.backends.neuronx.encoders import is_encoder
from lmi_build.backends.neuronx.loader_nxd import PROOF_ENTRY as EXPORT_PROOF_ENTRY
from lmi_build.backends.neuronx.loader_nxd import NxdLoader
from lmi_build.backends.neuronx.loader_tnx import PROOF_ENTRY as DECODER_PROOF_ENTRY
from lmi_build.backends.neuronx.loader_tnx import TnxLoader
from lmi_build.backends.neuronx.loader_trace import PROOF_ENTRY as ENCODER_PROOF_ENTRY
from lmi_build.backends.neuronx.loader_trace import TraceLoader
from lmi_build.backends.neuronx.loaders import Loader, Request
from lmi_build.backends.neuronx.recipe_checks import recipe_problems
from lmi_build.backends.neuronx.rehearsal import ENTRY as REHEARSAL_ENTRY
from lmi_build.backends.neuronx.stage_plans import compile_stage
from lmi_build.backends.neuronx.target import find_target, target_problems
from lmi_build.spi import BackendStage, Finding, Proof, ProviderInfo, Serving
from lmi_build.values.recipe import COMPILER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.errors import Problem
    from lmi_build.spi import Host
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec, Recipe

LOADERS: Mapping[str, Loader] = {
    "tnx": TnxLoader(),
    "optimum": NxdLoader("optimum"),
    "nxdi": NxdLoader("nxdi"),
    "trace": TraceLoader(),
}


class NeuronBackend:
    """Graphs for Inferentia2 and Trainium, and what LMI's Neuron containers load."""

    info = ProviderInfo(
        name="neuronx",
        summary="Neuron graphs for Inferentia2 and Trainium in LMI's containers",
        distributions=(),
        salt=COMPILE_SALT,
        entry=COMPILE_ENTRY,
        further_entries=(
            REHEARSAL_ENTRY,
            DECODER_PROOF_ENTRY,
            ENCODER_PROOF_ENTRY,
            EXPORT_PROOF_ENTRY,
        ),
        targets=("instances with Neuron devices",),
        packings=("none",),
    )

    def quantization(self, recipe: Recipe, model: ModelFacts) -> QuantSpec:
        """
        The libraries round float weights themselves, while they load them.

        What else the recipe says stays, so that `check` can refuse it by name.
        """
        del model
        spec = recipe.quantize
        if spec.method != "int8" or spec.provider != "builtin":
            return spec
        return replace(spec, provider=COMPILER)

    def check(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme
    ) -> Iterator[Problem]:
        """Yield every reason why this cannot be built, by dotted recipe path."""
        del scheme
        encoder = is_encoder(model.config)
        problems = [
            *target_problems(recipe.compile, encoder=encoder),
            *recipe_problems(recipe),
        ]
        yield from problems
        if problems:
            return
        request = _request(recipe, model)
        yield from LOADERS[request.target.loader].problems(request)

    def stages(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> tuple[BackendStage, ...]:
        """One stage, from the float model to what is packed."""
        del scheme
        request = _request(recipe, model, host)
        return (compile_stage(request, LOADERS[request.target.loader], host),)

    def serving(
        self,
        recipe: Recipe,
        model: ModelFacts,
        scheme: QuantScheme,
        host: Host,
        versions: Mapping[str, str],
    ) -> Serving:
        """What the package needs; nothing of it hangs on what is installed here."""
        del scheme, versions
        request = _request(recipe, model, host)
        return LOADERS[request.target.loader].serving(request)

    def proof(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> Proof:
        """Its files, what the container will do with them, and its numbers."""
        del scheme
        request = _request(recipe, model, host)
        return LOADERS[request.target.loader].proof(request)

    def diagnose(self, host: Host) -> Iterator[Finding]:
        """Devices, packages and libraries."""
        yield from diagnose(host)


def _request(recipe: Recipe, model: ModelFacts, host: Host | None = None) -> Request:
    encoder = is_encoder(model.config)
    return Request(
        recipe=recipe,
        model=model,
        target=find_target(recipe.compile, encoder=encoder),
        rehearse=host is not None and host.rehearse,
    )


PROVIDER = NeuronBackend()
