"""Laws of cutting: every stage once, edges without circles, inputs made before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.validate import ParamValidator
from hypothesis import given, settings
from hypothesis import strategies as st

from job_works import BASE, OWN_IMAGE, WHEEL, overrides_for, work_of
from lmi_build.catalog.instances import instances
from lmi_build.errors import RecipeInvalid
from lmi_build.jobs.api_check import check_request, service_model
from lmi_build.jobs.cut import cut
from lmi_build.jobs.finish import job_name
from lmi_build.jobs.needs import is_local, need_of
from lmi_build.jobs.render import render
from lmi_build.jobs.volume import USABLE_SHARE, Demand, fits_ram, host_bytes
from lmi_build.values.recipe import JobSpec
from lmi_build.values.stage import Estimate, Plan, PlannedArtifact, Stage
from planned_models import ALL

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.jobs.graph import JobGraph
    from lmi_build.jobs.union import Work

IDS = [f"{path.parent.name}.{path.stem}" for path in ALL]


def check_laws(graph: JobGraph, work: Work) -> None:
    """What holds for every graph."""
    every = {stage.key: stage for stage in work.plan.stages}
    built = [key for job in graph.jobs for key in job.stages]

    assert sorted([*built, *graph.local]) == sorted(every)
    assert len({job.name for job in graph.jobs}) == len(graph.jobs)
    assert len({job.label for job in graph.jobs}) == len(graph.jobs)
    there = set(graph.local)
    done: set[str] = set()
    for job in graph.jobs:
        assert set(job.after) <= done, "a job comes after one that comes later"
        assert 1 <= job.num_hosts <= min(work.spec.num_hosts, len(job.stages))
        assert set(job.needs) <= there, "an input that nobody made"
        seen = there | set()
        for key in job.stages:
            assert set(every[key].inputs.values()) <= seen
            seen.add(key)
        there |= set(job.stages)
        done.add(job.name)
        for key in job.needs:
            makers = {j.name for j in graph.jobs if key in j.stages}
            assert makers <= set(job.after)


@pytest.mark.parametrize("kind", ["gguf", "hub"])
@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_every_recipe_is_cut_by_the_laws(path: Path, kind: str) -> None:
    """Sources here and afar, hosts alone and together."""
    for extra in ((), ("job.num_hosts=3",), ("job.network_isolation=true",)):
        work = work_of(path, (*overrides_for(path), *extra), kind=kind)

        graph = cut(work)

        check_laws(graph, work)
        remote = kind == "hub" and "job.network_isolation=true" not in extra
        fetches = {s.key for s in work.plan.stages if s.kind == "fetch"}
        assert set(graph.local) == (set() if remote else fetches)


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_a_job_has_the_machine_its_stages_need(path: Path) -> None:
    """Memory and kind, by the catalogue; devices, by what the stage builds for."""
    work = work_of(path, overrides_for(path))
    stages = {stage.key: stage for stage in work.plan.stages}
    for job in cut(work).jobs:
        machine = instances()[job.instance]
        assert job.kind in machine.uses
        for key in job.stages:
            need = need_of(stages[key], work.spec)
            ram = stages[key].estimate.ram_bytes
            assert fits_ram(ram, machine.memory_bytes)
            if need.accelerator == "gpu":
                target = instances()[need.target]
                assert machine.compute_capability == target.compute_capability
            if need.accelerator == "neuron":
                assert machine.num_cores >= need.num_cores


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_names_are_the_work(path: Path) -> None:
    """The same again has the same names; another key, image or package has not."""
    work = work_of(path, overrides_for(path))
    names = {job.name for job in cut(work, salt="a").jobs}

    assert {job.name for job in cut(work, salt="a").jobs} == names
    assert not {job.name for job in cut(work, salt="b").jobs} & names
    other = replace(work, spec=replace(work.spec, environment={"A": "b"}))
    assert not {job.name for job in cut(other, salt="a").jobs} & names


# Any acyclic plan, on hosts without devices and on two instances that the recipe names.
KINDS = ("fetch", "quantize", "compile", "package", "verify")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Stages with inputs among those before them."""
    count = draw(st.integers(1, 12))
    stages: list[Stage] = []
    for number in range(count):
        before = (
            draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        )
        kind = draw(st.sampled_from(KINDS))
        stages.append(
            Stage(
                name=f"any/{kind}{number}",
                kind=kind,
                params={"number": number},
                inputs={f"in{i}": stages[i].key for i in sorted(before)},
                tools={},
                platform="any",
                salt=1,
                entry="any:run",
                estimate=Estimate(
                    disk_bytes=draw(st.integers(0, 1 << 36)),
                    ram_bytes=draw(st.integers(0, 1 << 33)),
                    scratch_bytes=draw(st.integers(0, 1 << 36)),
                ),
                secrets=("hub",) if draw(st.booleans()) else (),
            )
        )
    keys = {f"{stage.kind}{i}": stage.key for i, stage in enumerate(stages)}
    artifact = PlannedArtifact(name="smollm2-135m-none-cpu", stages=keys)
    return Plan(recipe="any", stages=tuple(stages), artifacts=(artifact,))


BASE_WORK = work_of(
    next(path for path in ALL if path.name == "none.onnxruntime.cpu.yaml"),
    (*BASE, f"job.image={OWN_IMAGE}"),
)


def with_plan(plan: Plan, **spec: Any) -> Work:
    """The plan as if the one recipe had made it."""
    (recipe,) = BASE_WORK.recipes.values()
    job = replace(BASE_WORK.spec, **spec)
    artifact = replace(plan.artifacts[0], name=recipe.name)
    return replace(
        BASE_WORK,
        plan=replace(plan, artifacts=(artifact,)),
        recipes={recipe.name: replace(recipe, job=job)},
        spec=job,
    )


@settings(max_examples=150, deadline=None)
@given(
    plan=plans(),
    hosts=st.sampled_from([1, 3]),
    where=st.dictionaries(
        st.sampled_from(KINDS),
        st.sampled_from(["ml.g5.48xlarge", "ml.m5.24xlarge", "ml.trn1.32xlarge"]),
        max_size=4,
    ),
)
def test_any_plan_is_cut_by_the_laws(
    plan: Plan, hosts: int, where: dict[str, str]
) -> None:
    """Whatever depends on whatever, on whichever machines."""
    work = with_plan(plan, num_hosts=hosts, instances=where)

    check_laws(cut(work), work)


@settings(max_examples=50, deadline=None)
@given(plan=plans())
def test_single_gives_one(plan: Plan) -> None:
    """All stages that are not local, in one job; none where all are."""
    work = with_plan(plan)

    graph = cut(work, single=True)

    check_laws(graph, work)
    away = [s for s in plan.stages if not is_local(s, work.spec)]
    assert len(graph.jobs) == bool(away)


@settings(max_examples=50, deadline=None)
@given(plan=plans())
def test_parts_that_share_nothing_are_jobs_of_their_own(plan: Plan) -> None:
    """With one host each; with many, one job of a machine and a depth."""
    alone = cut(with_plan(plan))
    together = cut(with_plan(plan, num_hosts=4))

    assert len(together.jobs) <= len(alone.jobs)
    for job in alone.jobs:
        others = {key for other in alone.jobs if other != job for key in other.stages}
        linked = set(job.needs) & others
        assert not linked or job.after


@settings(max_examples=100, deadline=None)
@given(
    plan=plans(),
    spec=st.fixed_dictionaries(
        {
            "num_hosts": st.integers(1, 100),
            "kind": st.sampled_from(["auto", "processing", "training"]),
            "spot": st.booleans(),
            "network_isolation": st.booleans(),
            "encrypt_traffic": st.booleans(),
            "subnets": st.sampled_from([(), tuple(f"subnet-{i}" for i in range(16))]),
            "volume_kms_key_id": st.sampled_from([None, "alias/a", "a" * 36]),
            "output_kms_key_id": st.sampled_from([None, "alias/b"]),
            "max_runtime_seconds": st.none() | st.integers(1, 777_600),
            "tags": st.dictionaries(
                st.text("abc\u00e4 ", min_size=1, max_size=128),
                st.text("x+", max_size=9),
            ),
            "environment": st.dictionaries(
                st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True),
                st.text(max_size=256),
                max_size=90,
            ),
        }
    ),
)
def test_what_the_recipe_may_say_the_api_takes(
    plan: Plan, spec: dict[str, Any]
) -> None:
    """Every request of every recipe within the grammar passes both validators."""
    groups = tuple(f"sg-{i}" for i in range(5)) if spec["subnets"] else ()
    if spec["spot"]:
        spec["kind"] = "training"
    work = with_plan(plan, security_group_ids=groups, **spec)

    for request in render(work, wheel=WHEEL).requests:
        assert check_request(request.operation, request.document) == ()
        shape = service_model().operation_model(request.operation).input_shape
        report = ParamValidator().validate(dict(request.document), shape)
        assert not report.has_errors(), report.generate_report()


@given(st.text(max_size=80), st.sampled_from(["cpu", "neuron-17"]), st.text(max_size=5))
def test_a_name_fits_the_pattern(prefix: str, label: str, work: str) -> None:
    """Whatever the recipe is called."""
    name = job_name(prefix, label, {"work": work})

    request = {"ProcessingJobName": name}
    faults = [
        fault
        for fault in check_request("CreateProcessingJob", request)
        if fault.path == "ProcessingJobName"
    ]
    assert faults == []
    assert label in name


@given(st.integers(0, 1 << 42))
def test_a_host_of_the_least_size_fits(ram_bytes: int) -> None:
    """And one of a GiB less does not, where that is a host at all."""
    least = host_bytes(ram_bytes)

    assert fits_ram(ram_bytes, least)
    if least > 1 << 30:
        assert not fits_ram(ram_bytes, least - (2 << 30))


@given(st.integers(0, 1 << 44), st.integers(0, 1 << 44))
def test_more_bytes_need_no_smaller_volume(first: int, second: int) -> None:
    """And there is always room for more than the estimate."""
    low, high = sorted((first, second))
    small, large = (
        Demand(disk_bytes=size, ram_bytes=0, ram_stage="", seconds=None).volume_gb
        for size in (low, high)
    )

    assert small <= large
    assert large * 10**9 > high


def test_every_field_of_the_job_section_is_in_a_name_or_in_no_request() -> None:
    """A setting that changes a request changes the name, too."""
    work = BASE_WORK
    base = render(work, wheel=WHEEL).requests
    changes: dict[str, Any] = {
        "kind": "training",
        "num_hosts": 2,
        "volume_kms_key_id": "alias/k",
        "output_kms_key_id": "alias/k",
        "max_runtime_seconds": 99,
        "network_isolation": True,
        "encrypt_traffic": True,
        "tags": {"a": "b"},
        "environment": {"A": "b"},
        "secrets": {"HF_TOKEN": "ssm:/token"},
        "role": "arn:aws:iam::111122223333:role/other",
        "max_jobs": 9,
    }
    assert set(changes) <= set(JobSpec.__dataclass_fields__)
    vpc = {"subnets": ("subnet-1",), "security_group_ids": ("sg-1",)}
    for name, change in [*((n, {n: v}) for n, v in changes.items()), ("vpc", vpc)]:
        job = replace(work.spec, **change)
        recipes = {n: replace(r, job=job) for n, r in work.recipes.items()}
        other = render(replace(work, spec=job, recipes=recipes), wheel=WHEEL).requests
        same_name = [r.job for r in base] == [r.job for r in other]
        same_work = [dict(r.document) for r in base] == [
            dict(r.document) for r in other
        ]
        assert same_name == same_work, name


def test_memory_that_no_host_has_is_refused() -> None:
    """With the number."""
    huge = Estimate(ram_bytes=int((1 << 44) * USABLE_SHARE))
    stages = [
        replace(stage, estimate=huge) if stage.kind == "compile" else stage
        for stage in BASE_WORK.plan.stages
    ]
    work = replace(BASE_WORK, plan=replace(BASE_WORK.plan, stages=tuple(stages)))

    with pytest.raises(RecipeInvalid) as caught:
        cut(work)

    assert {problem.code for problem in caught.value.problems} == {"job.host-too-small"}
