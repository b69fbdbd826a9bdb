"""
The planner: recipes and facts in, stages with keys out.

Pure: what it knows of the world comes in `World`. The same recipe, facts and
versions give the same keys on a laptop, in a container and in a job.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lmi_build.errors import Problem, RecipeInvalid, Unsupported
from lmi_build.package.layouts import layout_problems
from lmi_build.package.stage import ENTRY as PACKAGE_ENTRY
from lmi_build.package.stage import PACKAGE_SALT, package_params
from lmi_build.plan.checks import check_model
from lmi_build.plan.hessian import calibration_notes
from lmi_build.plan.locked import (
    as_locked,
    hold,
    lock_terms,
    other_processor,
    threads,
)
from lmi_build.quantizers.calibration import calibration_distributions
from lmi_build.sources import dataset as data
from lmi_build.sources import resolve as fetch
from lmi_build.sources.prequantized import (
    dequantized_facts,
    source_problems,
    source_scheme,
)
from lmi_build.text import join_words
from lmi_build.toolchains.versions import missing_blocker
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import COMPILER
from lmi_build.values.stage import (
    Blocker,
    Estimate,
    Note,
    Plan,
    PlannedArtifact,
    Stage,
)
from lmi_build.verify.stage import ENTRY as VERIFY_ENTRY
from lmi_build.verify.stage import (
    VERIFY_DISTRIBUTIONS,
    VERIFY_SALT,
    verify_estimate,
    verify_params,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from lmi_build.digest import Digest, JSONValue
    from lmi_build.spi import Backend, Host, Params, Proof, Quantizer
    from lmi_build.toolchains.environment import Pinned
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec, Recipe
    from lmi_build.values.settings import Settings

# Bytes of engine and package files beside the weights: tokenizer, graph, settings.
_SMALL_FILES_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """
    What the planner may know.

    Args:
        facts: Recipe name to its pinned model.
        quantizer: Finds a quantizer by name.
        backend: Finds a backend by name.
        versions: Versions of installed packages.
        handler_digest: Content of a serving handler by name.
        host: The machine, as far as backends may know it.
        num_cores: Cores this process may use: the threads of a worker by default.
        settings: The user's environment.
        toolchain: Pins of a private environment by name, installed or not.
        planned_on: This machine's processor where a lock names another; else empty.
        shared: Stages that were made already, by what makes them; filled as plans are
            made, so that what many recipes share is made once.
    """

    facts: Mapping[str, ModelFacts]
    quantizer: Callable[[str], Quantizer]
    backend: Callable[[str], Backend]
    versions: Callable[[Iterable[str]], Mapping[str, str | None]]
    handler_digest: Callable[[str], Digest]
    host: Host
    num_cores: int
    settings: Settings
    toolchain: Callable[[str], Pinned] | None = None
    planned_on: str = ""
    shared: dict[Hashable, Stage] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Processor of this host, `x86_64` or `aarch64`."""
        return self.host.architecture


def make_plan(name: str, recipes: Sequence[Recipe], world: World) -> Plan:
    """
    Plan every variant; stages that several share stand once.

    Args:
        name: Name of the recipe file's recipe.
        recipes: Its variants.
        world: Facts.

    Raises:
        RecipeInvalid: Every problem of every variant.
    """
    check(recipes, world)
    stages: dict[Digest, Stage] = {}
    artifacts = []
    for recipe in recipes:
        chain = _chain(recipe, world)
        for stage in chain:
            stages.setdefault(stage.key, stage)
        keys = {stage.kind: stage.key for stage in chain}
        artifacts.append(PlannedArtifact(name=recipe.name, stages=keys))
    return Plan(recipe=name, stages=tuple(stages.values()), artifacts=tuple(artifacts))


def check(recipes: Sequence[Recipe], world: World) -> None:
    """
    Hold recipes against their models and providers.

    Raises:
        RecipeInvalid: Every problem of every variant.
    """
    problems = [p for recipe in recipes for p in _problems(recipe, world)]
    if problems:
        raise RecipeInvalid(_unique(problems))


def _unique(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    def place(problem: Problem) -> tuple[str, int, int]:
        span = problem.span
        return (span.file, span.line, span.column) if span else ("", 0, 0)

    return tuple(sorted(dict.fromkeys(problems), key=place))


def _problems(recipe: Recipe, world: World) -> Iterable[Problem]:
    facts = world.facts[recipe.name]
    world = as_locked(recipe, world)
    found = [*check_model(recipe, facts)]
    missing = check_providers(recipe, world.quantizer, world.backend)
    if missing:
        found += missing
        return [recipe.locate(problem) for problem in found]
    packed = source_problems(recipe, facts)
    if packed:
        return [recipe.locate(problem) for problem in (*found, *packed)]
    recipe = _settled(recipe, world)
    scheme = float_scheme(facts)
    if recipe.quantize.provider == COMPILER:
        scheme = compiler_scheme(recipe.quantize)
    elif recipe.quantize.method != "none":
        quantizer = world.quantizer(recipe.quantize.provider)
        found += quantizer.check(recipe, facts)
        scheme = quantizer.scheme(recipe.quantize, facts)
    backend = world.backend(recipe.compile.backend)
    refused = [*backend.check(recipe, facts, scheme)]
    if not refused:
        here = dict(world.versions(backend.info.distributions))
        hold(recipe, "compile", "", here)
        versions = _known(here)
        serving = backend.serving(recipe, facts, scheme, world.host, versions)
        refused += layout_problems(recipe, serving)
    found += refused
    return [recipe.locate(problem) for problem in found]


def _settled(recipe: Recipe, world: World) -> Recipe:
    """The recipe with what it leaves open chosen for its backend."""
    backend = world.backend(recipe.compile.backend)
    spec = backend.quantization(recipe, world.facts[recipe.name])
    return replace(recipe, quantize=spec)


def _known(versions: Mapping[str, str | None]) -> dict[str, str]:
    """Versions as they stand in a key: a package that is not here is `absent`."""
    return {name: version or "absent" for name, version in versions.items()}


def check_providers(
    recipe: Recipe,
    quantizer: Callable[[str], Quantizer],
    backend: Callable[[str], Backend],
) -> list[Problem]:
    """Find what no installed provider can do, without knowing the model."""
    found = []
    spec = recipe.quantize
    if spec.method != "none":
        try:
            methods = quantizer(spec.provider).info.methods
        except Unsupported as error:
            found.append(_missing(error, "quantize.provider"))
        else:
            if spec.method not in methods:
                found.append(_no_method(spec.method, spec.provider, methods))
    try:
        backend(recipe.compile.backend)
    except Unsupported as error:
        found.append(_missing(error, "compile.backend"))
    return [recipe.locate(problem) for problem in found]


def _missing(error: Unsupported, path: str) -> Problem:
    hint = error.hints[0] if error.hints else ""
    return Problem(
        code=error.code, message=error.message, path=path, hint=hint, unsupported=True
    )


def _no_method(method: str, provider: str, methods: Sequence[str]) -> Problem:
    return Problem(
        code="quantize.method-unsupported",
        message=f"the provider `{provider}` has no method `{method}`",
        path="quantize.method",
        hint=f"use {join_words(methods)}",
        unsupported=True,
    )


def float_scheme(facts: ModelFacts) -> QuantScheme:
    """The scheme that a model comes with: float, or what it was quantized to."""
    scheme = source_scheme(facts)
    return scheme or QuantScheme(
        weight_bits=32 if facts.dtype == "float32" else 16,
        weight_dtype="float",
        group_size=-1,
        sym=True,
        activation_bits=16,
        packing="none",
    )


def compiler_scheme(spec: QuantSpec) -> QuantScheme:
    """Of weights that lie in float and are rounded where they are loaded."""
    return QuantScheme(
        weight_bits=spec.bits,
        weight_dtype="int",
        group_size=spec.group_size,
        sym=spec.sym,
        activation_bits=16,
        packing="none",
        scale_dtype="float32",
    )


def _float_facts(facts: ModelFacts) -> ModelFacts:
    """The float model that an engine is compared with."""
    scheme = source_scheme(facts)
    return facts if scheme is None else dequantized_facts(facts, scheme)


def _chain(recipe: Recipe, world: World) -> list[Stage]:
    """The stages of one artifact, in order."""
    facts = world.facts[recipe.name]
    world = as_locked(recipe, world)
    recipe = _settled(recipe, world)
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
        tools=_known(versions),
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
