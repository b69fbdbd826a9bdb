"""Engines that a backend builds on this machine, from recipe to artifact."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lmi_build import api, registry
from lmi_build.checkpoint.formats.dequantized import is_quantized, write_dequantized
from lmi_build.package.engine import load_engine
from lmi_build.package.handler_files import handler_digest
from lmi_build.plan import planner
from lmi_build.testing.law import Broken
from lmi_build.testing.law_cases import cases_of
from lmi_build.testing.samples import problems, recipe_of, settle
from lmi_build.toolchains.versions import installed_versions
from lmi_build.values.settings import settings_from_environ
from lmi_build.verify.integrity import read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.package.engine import Loaded
    from lmi_build.plan.planner import World
    from lmi_build.spi import Backend, Proof
    from lmi_build.testing.samples import Case
    from lmi_build.values.manifest import Manifest
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan

# A compiler that makes a graph for each length makes few of them.
ENGINE_BOUNDS: Mapping[str, int] = MappingProxyType(
    {"max_input_len": 16, "max_output_len": 8, "max_batch_size": 2}
)
FLOAT: Mapping[str, JSONValue] = MappingProxyType({"method": "none"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Buildable:
    """
    A recipe that this machine can build.

    Args:
        case: The recipe and its model.
        plan: Its stages.
        settings: Of the first build.
        proof: How its artifact is tried.
    """

    case: Case
    plan: Plan
    settings: Settings
    proof: Proof


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """
    An artifact that was built and verified here, and perhaps once more elsewhere.

    Args:
        backend: Who built it.
        case: The recipe and its model.
        proof: How it was tried.
        root: The artifact.
        again: The artifact of the second build, from another store; None where it was
            built once.
        weights: The checkpoint that the backend was given, or the float model that it
            means.
        scratch: An empty folder for what a law breaks.
    """

    backend: Backend
    case: Case
    proof: Proof
    root: Path
    again: Path | None
    weights: Path
    scratch: Path

    @property
    def manifest(self) -> Manifest:
        """Of the first build."""
        return read_manifest(self.root)

    def load(self) -> Loaded:
        """The engine, as its own handler loads it."""
        return load_engine(self.root, self.manifest)

    def copy(self, name: str) -> Path:
        """The artifact with files of its own, to be damaged."""
        to = self.scratch / name
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.root, to, copy_function=shutil.copyfile)
        return to


def settings_in(backend: Backend, place: Path) -> Settings:
    """
    Settings with a store in `place`, whose workers find the backend's code.

    Args:
        backend: Its module may lie where only this interpreter looks.
        place: Of the store.
    """
    found = settings_from_environ(os.environ, cache_dir=place / "store", offline=True)
    top = sys.modules[type(backend).__module__.partition(".")[0]].__file__
    home = Path(top or ".").parent
    home = home.parent if Path(top or "").name == "__init__.py" else home
    environment = {**found.worker_environment, "PYTHONPATH": str(home)}
    return replace(found, worker_environment=environment)


def _world(backend: Backend, case: Case, settings: Settings) -> World:
    return planner.World(
        facts={case.asked.name: case.facts},
        quantizer=registry.quantizer,
        backend=lambda _name: backend,
        versions=installed_versions,
        handler_digest=handler_digest,
        host=api.host(settings),
        num_cores=len(os.sched_getaffinity(0)),
        settings=settings,
    )


def _cases_here(
    backend: Backend,
    model: Path,
    place: Path,
    *,
    quantize: Mapping[str, JSONValue],
    bounds: Mapping[str, int],
    options: Mapping[str, JSONValue],
) -> Iterator[Case]:
    """Yield accepted recipes of a model's folder, one for each target."""
    tried: set[str] = set()
    for sample in cases_of(backend):
        target = sample.recipe.compile.target
        if target in tried:
            continue
        tried.add(target)
        recipe = recipe_of(
            backend,
            target=target,
            quantize=quantize,
            source=str(model),
            file=str(place / "recipe.yaml"),
            bounds=bounds,
            options=options,
            verify={"prompts": ["hello"], "max_new_tokens": 2, "num_samples": 2},
        )
        settings = settings_in(backend, place)
        facts = api.resolve([recipe], settings)[recipe.name]
        case = settle(backend, recipe, facts)
        if not problems(backend, case):
            yield case


def buildable(
    backend: Backend,
    model: Path,
    place: Path,
    *,
    quantize: Mapping[str, JSONValue] = FLOAT,
    bounds: Mapping[str, int] = ENGINE_BOUNDS,
    options: Mapping[str, JSONValue] | None = None,
) -> Buildable | None:
    """
    The first target for which nothing is missing on this machine.

    Args:
        backend: Who builds.
        model: A Hugging Face folder.
        place: An empty folder.
        quantize: Section of the recipe.
        bounds: Of the recipe.
        options: `compile.options`.

    Returns:
        None where every target needs something that is not here; a blocker says what.
    """
    cases = _cases_here(
        backend, model, place, quantize=quantize, bounds=bounds, options=options or {}
    )
    for case in cases:
        settings = settings_in(backend, place)
        world = _world(backend, case, settings)
        plan = planner.make_plan(case.asked.name, [case.asked], world)
        if any(stage.blocker for stage in plan.stages):
            continue
        proof = backend.proof(case.recipe, case.facts, case.scheme, world.host)
        return Buildable(case=case, plan=plan, settings=settings, proof=proof)
    return None


def missing(
    backend: Backend,
    model: Path,
    place: Path,
    *,
    quantize: Mapping[str, JSONValue] = FLOAT,
) -> str:
    """
    What keeps this machine from building anything with a backend, in its own words.

    Args:
        backend: Who would build.
        model: A Hugging Face folder.
        place: An empty folder.
        quantize: Section of the recipe.
    """
    cases = _cases_here(
        backend, model, place, quantize=quantize, bounds=ENGINE_BOUNDS, options={}
    )
    said = []
    for case in cases:
        world = _world(backend, case, settings_in(backend, place))
        plan = planner.make_plan(case.asked.name, [case.asked], world)
        said += [stage.blocker.message for stage in plan.stages if stage.blocker]
    method = quantize["method"]
    return said[0] if said else f"no target takes {model.name} with method `{method}`"


def build(
    backend: Backend, what: Buildable, place: Path, *, twice: bool = True
) -> Built:
    """
    Build and verify an artifact.

    Args:
        backend: Who builds.
        what: From `buildable`.
        place: An empty folder.
        twice: Build it once more with an empty store, so that bytes can be compared.

    Raises:
        LmiBuildError: A stage failed; of verification, too.
    """
    settings = what.settings
    done = api.build(what.plan, settings)
    name = what.plan.artifacts[0].name
    root, _ = api.write_artifact(done, name, place / "first", settings)
    again: Path | None = None
    if twice:
        elsewhere = settings_in(backend, place / "elsewhere")
        second = api.build(what.plan, elsewhere, until="package")
        again, _ = api.write_artifact(second, name, place / "second", elsewhere)
    results = done.artifacts[name]
    kind = "quantize" if "quantize" in results else "fetch"
    weights = place / "weights"
    with closing(api.open_store(settings)) as store:
        store.materialize(results[kind], weights)
    if is_quantized(weights):
        meant = place / "dequantized"
        meant.mkdir()
        write_dequantized(weights, meant)
        weights = meant
    return Built(
        backend=backend,
        case=what.case,
        proof=what.proof,
        root=root,
        again=again,
        weights=weights,
        scratch=place / "scratch",
    )


def built_here(backend: Backend, model: Path, place: Path) -> Built:
    """
    `buildable` and `build` in one.

    Raises:
        Broken: This machine can build nothing with it.
    """
    what = buildable(backend, model, place)
    if what is None:
        raise Broken(missing(backend, model, place))
    return build(backend, what, place)


def is_varying(backend: Backend, path: str) -> bool:
    """Whether a backend says that a file's bytes may differ between two builds."""
    return any(fnmatch(path, pattern) for pattern in backend.info.varying)
