"""
Stages of a plan become jobs, by the machine that each needs.

A stage's depth is how often the machine changes on the longest way to it. Stages of
one depth on one machine make one job; hosts that share work take it together, and
without them each part that shares nothing becomes a job of its own. An edge between two
jobs always leads to a greater depth, so there are no circles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.catalog.instances import instances
from lmi_build.errors import Problem, RecipeInvalid
from lmi_build.jobs.finish import finish
from lmi_build.jobs.graph import JobGraph
from lmi_build.jobs.images import choose_image, region_problem
from lmi_build.jobs.locked_images import with_digest
from lmi_build.jobs.machines import choose_machine
from lmi_build.jobs.needs import AUTO, is_local, need_of, owners
from lmi_build.jobs.placed import Placed
from lmi_build.jobs.wheelhouse import version_problem
from lmi_build.values.job import TRAINING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lmi_build.digest import Digest
    from lmi_build.jobs.graph import PlannedJob
    from lmi_build.jobs.needs import Need
    from lmi_build.jobs.union import Work
    from lmi_build.values.stage import Stage


def cut(work: Work, *, single: bool = False, salt: str = "") -> JobGraph:
    """
    Cut a plan into jobs.

    Args:
        work: The plan, with what it came from.
        single: Keep everything in one job, on the machine of the stage that needs most.
        salt: What else makes another job of the same stages: digest of the package.

    Raises:
        RecipeInvalid: Every reason why a stage cannot run as the recipes say, by place.
    """
    keys = {stage.key: stage for stage in work.plan.stages}
    local = tuple(key for key, stage in keys.items() if is_local(stage, work.spec))
    here = frozenset(local)
    placed, problems = _place(work, {k: s for k, s in keys.items() if k not in here})
    if single and placed and not problems:
        placed, problems = _on_one_machine(placed)
    groups = [] if problems else _groups(placed, work.spec.num_hosts, single=single)
    jobs, more = finish(groups, work, keys, salt=salt)
    problems += more or _spot_problems(work, jobs)
    if problems:
        raise RecipeInvalid(_unique(problems))
    return JobGraph(
        plan=work.plan,
        local=local,
        jobs=jobs,
        spec=work.spec,
        store=work.store,
        region=work.region,
        publish=work.publish,
        wheels=work.wheels,
    )


def _spot_problems(work: Work, jobs: Sequence[PlannedJob]) -> list[Problem]:
    """Spare capacity that was asked for, where no job can have it."""
    if not work.spec.spot or not jobs or any(job.kind == TRAINING for job in jobs):
        return []
    recipe = next(r for r in work.recipes.values() if r.job is not None)
    problem = Problem(
        code="job.no-spot",
        message="`spot` changes nothing: SageMaker runs training jobs alone on spare"
        f" capacity, and {', '.join(job.name for job in jobs)} would be processing"
        " jobs at the full price",
        path="job.spot",
        hint="write `kind: training` beside it, or remove `spot`",
    )
    return [recipe.locate(problem)]


def _place(
    work: Work, stages: Mapping[Digest, Stage]
) -> tuple[list[Placed], list[Problem]]:
    """Each stage's machine, or why it has none."""
    owned = owners(work.plan, work.recipes)
    placed, problems = [], []
    for key, stage in stages.items():
        recipe = owned[key]
        spec = recipe.job or work.spec
        need = need_of(stage, spec)
        choice = choose_machine(stage, need, spec.kind)
        if isinstance(choice, Problem):
            problems.append(recipe.locate(choice))
            continue
        image = choose_image(stage, need, work.region, work.wheels)
        if isinstance(image, Problem):
            problems.append(recipe.locate(image))
            continue
        fault = region_problem(image, work.region, path=need.image_path)
        fault = fault or version_problem(stage, work.wheels)
        if fault is not None:
            problems.append(recipe.locate(fault))
            continue
        placed.append(
            Placed(
                stage=stage,
                key=key,
                recipe=recipe,
                kind=choice.kind,
                instance=choice.instance,
                image=with_digest(recipe, stage, image),
                fixed=_decides(need),
                reason=choice.reason,
                instance_path=need.instance_path,
            )
        )
    return placed, problems


def _decides(need: Need) -> str:
    """The dotted path of what fixes a stage's image, if anything does."""
    if need.image:
        return need.image_path
    return "compile.release" if need.release else ""


def _on_one_machine(
    placed: Sequence[Placed],
) -> tuple[list[Placed], list[Problem]]:
    """Everything on the machine of the stage that needs a device."""
    fixed = {p.machine: p for p in placed if p.instance != AUTO and _has_device(p)}
    fixed = fixed or {p.machine: p for p in placed if p.instance != AUTO}
    fixed = fixed or {p.machine: p for p in placed if p.stage.kind == "compile"}
    machines = {(p.kind, p.instance): p for p in fixed.values()}
    if len(machines) > 1:
        return [], [_not_single(*list(machines.values())[:2], image=False)]
    images: dict[str, Placed] = {}
    for p in placed:
        if p.fixed:
            images.setdefault(p.image, p)
    if len(images) > 1:
        return [], [_not_single(*list(images.values())[:2], image=True)]
    one = next(iter(fixed.values()), placed[0])
    image = next(iter(images), one.image)
    return [
        replace(p, kind=one.kind, instance=one.instance, image=image, reason=one.reason)
        for p in placed
    ], []


def _not_single(first: Placed, second: Placed, *, image: bool) -> Problem:
    """Why two stages cannot be in one job, at the place that tells the second."""
    path = "compile.target" if second.recipe.job is None else second.instance_path
    return second.recipe.locate(
        Problem(
            code="job.not-single",
            message=f"one job cannot be both {_words(first, image=image)}"
            f" ({first.stage.name}) and {_words(second, image=image)}"
            f" ({second.stage.name})",
            path=second.fixed if image else path,
            hint="leave out `--single`, name one image with the tools of both, or"
            " submit the recipes one by one"
            if image
            else "leave out `--single`, or submit the recipes one by one",
        )
    )


def _has_device(placed: Placed) -> bool:
    return instances()[placed.instance].num_devices > 0


def _words(placed: Placed, *, image: bool) -> str:
    if image:
        return f"`{placed.image}`"
    return "a host" if placed.instance == AUTO else f"`{placed.instance}`"


def _groups(
    placed: Sequence[Placed], num_hosts: int, *, single: bool
) -> list[list[Placed]]:
    """Stages of one job each, in an order that respects their inputs."""
    if single:
        return [list(placed)] if placed else []
    depth: dict[Digest, int] = {}
    by_key = {p.key: p for p in placed}
    groups: dict[tuple[int, tuple[str, str, str]], list[Placed]] = {}
    for p in placed:
        before = [by_key[key] for key in p.stage.inputs.values() if key in by_key]
        depth[p.key] = max(
            (depth[q.key] + (q.machine != p.machine) for q in before), default=0
        )
        groups.setdefault((depth[p.key], p.machine), []).append(p)
    ordered = [groups[name] for name in sorted(groups, key=lambda name: name[0])]
    if num_hosts > 1:
        return ordered
    return [part for group in ordered for part in _parts(group)]


def _parts(group: Sequence[Placed]) -> list[list[Placed]]:
    """The parts of a group that share nothing, each in the plan's order."""
    leader: dict[Digest, Digest] = {}

    def find(key: Digest) -> Digest:
        while leader[key] != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for p in group:
        leader[p.key] = p.key
        for key in p.stage.inputs.values():
            if key in leader:
                leader[find(key)] = p.key
    parts: dict[Digest, list[Placed]] = {}
    for p in group:
        parts.setdefault(find(p.key), []).append(p)
    return list(parts.values())


def _unique(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Each problem once, in the order of the texts."""

    def place(problem: Problem) -> tuple[str, int, int]:
        span = problem.span
        return (span.file, span.line, span.column) if span else ("", 0, 0)

    return tuple(sorted(dict.fromkeys(problems), key=place))
