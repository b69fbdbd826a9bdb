"""The chain of stages that makes one artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.package.stage import ENTRY as PACKAGE_ENTRY
from lmi_build.package.stage import PACKAGE_SALT, package_params
from lmi_build.plan.hessian import calibration_notes
from lmi_build.plan.locked import as_locked, hold, lock_terms, other_processor, threads
from lmi_build.plan.settled import compiler_scheme, float_scheme, known, settled
from lmi_build.quantizers.calibration import calibration_distributions
from lmi_build.sources import dataset as data
from lmi_build.sources import resolve as fetch
from lmi_build.sources.prequantized import dequantized_facts, source_scheme
from lmi_build.toolchains.versions import missing_blocker
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import COMPILER
from lmi_build.values.stage import Blocker, Estimate, Note, Stage
from lmi_build.verify.stage import ENTRY as VERIFY_ENTRY
from lmi_build.verify.stage import (
    VERIFY_DISTRIBUTIONS,
    VERIFY_SALT,
    verify_estimate,
    verify_params,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from lmi_build.digest import Digest, JSONValue
    from lmi_build.plan.world import World
    from lmi_build.spi import Backend, Params, Proof, Quantizer
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

# Bytes of engine and package files beside the weights: tokenizer, graph, settings.
_SMALL_FILES_BYTES = 32 << 20


def chain_of(recipe: Recipe, world: World) -> list[Stage]:
    """The stages of one artifact, in order."""
    facts = world.facts[recipe.name]
    world = as_locked(recipe, world)
    recipe = settled(recipe, world)
    source = ("fetch", recipe.model, id(facts), lock_terms(recipe, "fetch"))
    chain = [_once(world, source, lambda: _fetch(recipe, facts, world))]
    scheme = float_scheme(facts)
    if recipe.quantize.provider == COMPILER:
        scheme = compiler_scheme(recipe.quantize)
    elif recipe.quantize.method != "none":
        quantizer = world.quantizer(recipe.quantize.provider)
        scheme = quantizer.scheme(recipe.quantize, facts)
        dataset = _calibration(recipe, world)
        terms = lock_terms(recipe, "quantize")
        made = ("quantize", recipe.quantize, id(facts), chain[0].key, terms)
        checkpoint = _once(
            world,
            made,
            lambda: _quantize(recipe, facts, quantizer, chain[0], dataset, world),
        )
        chain += [stage for stage in (dataset, checkpoint) if stage is not None]
    backend = world.backend(recipe.compile.backend)
    chain += _backend_stages(recipe, facts, scheme, backend, chain, world)
    package = _package(recipe, facts, scheme, backend, chain, world)
    proof = backend.proof(recipe, facts, scheme, world.host)
    chain += [package, _verify(recipe, facts, proof, package, chain, world)]
    return chain


def _once(world: World, made: Hashable, make: Callable[[], Stage]) -> Stage:
    """
    A stage that was made before, or a new one.

    Of equal stages a plan keeps the first, so the others need not be made.
    """
    found = world.shared.get(made)
    if found is None:
        found = world.shared[made] = make()
    return found


def _stage(  # noqa: PLR0913 - one place makes stages; the names say the rest
    recipe: Recipe,
    kind: str,
    world: World,
    *,
    params: Params,
    inputs: Mapping[str, Digest],
    distributions: Sequence[str],
    platform: str,
    salt: int,
    entry: str,
    estimate: Estimate,
    job: Mapping[str, JSONValue] | None = None,
    secrets: tuple[str, ...] = (),
    notes: tuple[Note, ...] = (),
    toolchain: str = "",
    pinned: Mapping[str, str] | None = None,
    blocker: Blocker | None = None,
) -> Stage:
    if toolchain and world.toolchain is not None:
        found = world.toolchain(toolchain)
        versions: dict[str, str | None] = {**found.versions}
        blocker = found.blocker
    else:
        versions = dict(world.versions(distributions))
        blocker = missing_blocker(versions) or blocker
        # What a release brings is the same wherever the stage is planned.
        versions |= pinned or {}
    moved = hold(recipe, kind, toolchain, versions)
    blocker = blocker or moved or other_processor(recipe, platform, world)
    if blocker is None and secrets and world.settings.offline:
        blocker = Blocker(
            code="tool.offline",
            message="needs the network, and `--offline` is set",
            hint="run once without `--offline`; the result is then kept",
        )
    return Stage(
        name=f"{recipe.name}/{kind}",
        kind=kind,
        params=params,
        inputs=inputs,
        tools=known(versions),
        platform=platform,
        salt=salt,
        entry=entry,
        job=job or {},
        secrets=secrets,
        estimate=estimate,
        blocker=blocker,
        notes=notes,
        toolchain=toolchain,
    )


def _fetch(recipe: Recipe, facts: ModelFacts, world: World) -> Stage:
    return _stage(
        recipe,
        "fetch",
        world,
        params=fetch.fetch_stage_params(facts, recipe.model),
        inputs={},
        distributions=fetch.fetch_distributions(facts.kind, dtype=recipe.model.dtype),
        platform="any",
        salt=fetch.FETCH_SALT,
        entry=fetch.FETCH_ENTRY,
        estimate=fetch.estimate_fetch(facts, recipe.model),
        job=fetch.fetch_settings(facts, world.settings),
        secrets=fetch.fetch_secrets(facts),
    )


def _calibration(recipe: Recipe, world: World) -> Stage | None:
    """The stage that brings the files of a data set, unless the text is built in."""
    calibration = recipe.quantize.calibration
    facts = calibration.facts if calibration else None
    if facts is None:
        return None
    return _stage(
        recipe,
        "calibration",
        world,
        params=data.dataset_stage_params(facts),
        inputs={},
        distributions=(),
        platform="any",
        salt=data.DATASET_SALT,
        entry=data.DATASET_ENTRY,
        estimate=data.estimate_dataset(facts),
        job=data.dataset_settings(facts, world.settings),
        secrets=data.dataset_secrets(facts),
        notes=data.dataset_notes(facts),
    )


def _quantize(
    recipe: Recipe,
    facts: ModelFacts,
    quantizer: Quantizer,
    model: Stage,
    dataset: Stage | None,
    world: World,
) -> Stage:
    calibration = recipe.quantize.calibration
    needs = calibration_distributions(calibration) if calibration else ()
    inputs = {"model": model.key}
    if dataset is not None:
        inputs["calibration"] = dataset.key
    params = quantizer.lower(recipe.quantize, facts)
    if recipe.quantize.method in quantizer.info.threaded_methods:
        params = {**params, "threads": threads(recipe, world)}
    return _stage(
        recipe,
        "quantize",
        world,
        params=params,
        inputs=inputs,
        distributions=(*quantizer.info.distributions, *needs),
        platform="any",
        salt=quantizer.info.salt,
        entry=quantizer.info.entry,
        estimate=quantizer.estimate(recipe.quantize, facts),
        job=quantizer.job_settings(recipe.quantize),
        notes=calibration_notes(recipe.quantize, facts),
        toolchain=quantizer.info.toolchain,
    )


def _backend_stages(
    recipe: Recipe,
    facts: ModelFacts,
    scheme: QuantScheme,
    backend: Backend,
    chain: Sequence[Stage],
    world: World,
) -> list[Stage]:
    """The steps from the checkpoint to what is packed."""
    made = {"fetch": chain[0], "weights": chain[-1]}
    found = []
    for step in backend.stages(recipe, facts, scheme, world.host):
        stage = _stage(
            recipe,
            step.kind,
            world,
            params=step.params,
            inputs={role: made[kind].key for role, kind in step.inputs.items()},
            distributions=step.distributions,
            platform=step.platform
            or f"linux-{world.architecture}-{recipe.compile.target}",
            salt=step.salt,
            entry=step.entry,
            estimate=step.estimate,
            job=step.settings,
            notes=step.notes,
            pinned=step.tools,
            blocker=step.blocker,
        )
        made[step.kind] = stage
        found.append(stage)
    return found


def _package(
    recipe: Recipe,
    facts: ModelFacts,
    scheme: QuantScheme,
    backend: Backend,
    chain: Sequence[Stage],
    world: World,
) -> Stage:
    by_kind = {stage.kind: stage for stage in chain}
    checkpoint = by_kind.get("quantize", by_kind["fetch"])
    engine = chain[-1]
    serving = backend.serving(recipe, facts, scheme, world.host, engine.tools)
    params = package_params(
        recipe=recipe,
        facts=facts,
        scheme=scheme,
        serving=serving,
        keys={kind: stage.key for kind, stage in by_kind.items()},
        tools={kind: stage.tools for kind, stage in by_kind.items()},
        handler_digest=(
            world.handler_digest(serving.handler) if serving.handler else None
        ),
        architecture=world.architecture,
    )
    inputs = {"model": chain[0].key, "checkpoint": checkpoint.key, "engine": engine.key}
    compressed = recipe.package.format != "prefix"
    return _stage(
        recipe,
        "package",
        world,
        params=params,
        inputs=inputs,
        distributions=("isal",) if compressed else (),
        platform=f"linux-{world.architecture}-{recipe.compile.target}",
        salt=PACKAGE_SALT,
        entry=PACKAGE_ENTRY,
        # A folder shares its bytes with the engine's result; an archive does not.
        estimate=Estimate(
            disk_bytes=engine.estimate.disk_bytes if compressed else _SMALL_FILES_BYTES
        ),
    )


def _verify(
    recipe: Recipe,
    facts: ModelFacts,
    proof: Proof,
    package: Stage,
    chain: Sequence[Stage],
    world: World,
) -> Stage:
    params = {**verify_params(recipe), **proof.params}
    engine = chain[-1]
    return _stage(
        recipe,
        "verify",
        world,
        params=params,
        inputs={
            "package": package.key,
            "model": package.inputs["model"],
            **({"weights": package.inputs["checkpoint"]} if proof.weights else {}),
        },
        distributions=tuple(sorted({*VERIFY_DISTRIBUTIONS, *proof.distributions})),
        platform=package.platform,
        salt=VERIFY_SALT,
        entry=proof.entry or VERIFY_ENTRY,
        estimate=proof.estimate
        or verify_estimate(
            _float_facts(facts), params, engine_bytes=engine.estimate.disk_bytes
        ),
    )


def _float_facts(facts: ModelFacts) -> ModelFacts:
    """The float model that an engine is compared with."""
    scheme = source_scheme(facts)
    return facts if scheme is None else dequantized_facts(facts, scheme)
