"""Laws of locks: text, differences, and the keys of plans that follow one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.errors import RecipeInvalid
from lmi_build.plan.planner import make_plan
from lmi_build.recipe.lock import lock_text
from lmi_build.recipe.lock_reader import parse_lock
from lmi_build.values.lock import (
    Lock,
    LockChange,
    LockedData,
    LockedModel,
    lock_changes,
    scoped,
)
from lmi_build.values.model import FileFact
from locked_plans import (
    COMMIT,
    FILES,
    Machine,
    keys,
    plan_on,
    recipes,
    settings_of,
    world_of,
)

WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="\x7f\x00"), min_size=1, max_size=12
)
HEX = st.text("0123456789abcdef", min_size=40, max_size=40)
DIGESTS = st.one_of(
    HEX.map("git-sha1:{}".format),
    st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:{}".format),
)
NAMES = st.from_regex(r"[a-z][a-z0-9._-]{0,9}", fullmatch=True)
VERSIONS = st.from_regex(r"[0-9]{1,2}\.[0-9]{1,2}(\+cpu)?", fullmatch=True)
TOOLS = st.dictionaries(NAMES, VERSIONS, min_size=1, max_size=4)
FACTS = st.lists(
    st.builds(FileFact, path=WORDS, size=st.integers(0, 2**50), digest=DIGESTS),
    min_size=1,
    max_size=4,
    unique_by=lambda fact: fact.path,
).map(lambda files: tuple(sorted(files, key=lambda fact: fact.path)))
MODELS = st.lists(
    st.builds(
        LockedModel,
        source=WORDS,
        revision=WORDS,
        trust_remote_code=st.booleans(),
        commit=st.one_of(st.just(""), HEX),
        files=FACTS,
    ),
    max_size=3,
    unique_by=lambda entry: entry.name,
)
DATA = st.lists(
    st.builds(
        LockedData,
        dataset=WORDS,
        num_tokens=st.integers(0, 10**9),
        commit=st.one_of(st.just(""), HEX),
        files=FACTS,
    ),
    max_size=2,
    unique_by=lambda entry: entry.name,
)


def by_name(entries: list[Any]) -> tuple[Any, ...]:
    """Entries in the order of a lock."""
    return tuple(sorted(entries, key=lambda entry: entry.name))


LOCKS = st.builds(
    Lock,
    recipe=WORDS,
    lmi_build=VERSIONS,
    catalog=st.text("0123456789abcdef", min_size=64, max_size=64).map(
        "sha256:{}".format
    ),
    architecture=st.sampled_from(["x86_64", "aarch64"]),
    threads=st.integers(0, 64),
    jobs=st.lists(NAMES, max_size=2).map(tuple),
    models=MODELS.map(by_name),
    calibration=DATA.map(by_name),
    images=st.dictionaries(NAMES, WORDS, max_size=2),
    tools=st.dictionaries(
        st.one_of(st.just(""), st.sampled_from(["compile", "a-b/compile"])), TOOLS
    ),
    toolchains=st.dictionaries(NAMES, TOOLS, max_size=2),
)


@settings(max_examples=40)
@given(LOCKS)
def test_reads_back(lock: Lock) -> None:
    """What is read from a lock's text is the lock."""
    assert parse_lock(lock_text(lock), "recipe.lock") == lock


@settings(max_examples=30)
@given(LOCKS, st.randoms(use_true_random=False))
def test_order_of_entries_does_not_matter(lock: Lock, random: Any) -> None:
    """The same entries in another order give the same bytes."""

    def mixed(values: Any) -> Any:
        found = list(values.items() if isinstance(values, dict) else values)
        random.shuffle(found)
        return dict(found) if isinstance(values, dict) else tuple(found)

    other = replace(
        lock,
        models=mixed(lock.models),
        calibration=mixed(lock.calibration),
        images=mixed(lock.images),
        tools=mixed({at: mixed(tools) for at, tools in lock.tools.items()}),
        toolchains=mixed(lock.toolchains),
    )

    assert lock_text(other) == lock_text(lock)
    assert lock_changes(lock, other) == ()


@settings(max_examples=25)
@given(LOCKS, st.data())
def test_cut_or_garbled_text_is_refused_or_read(
    lock: Lock, data: st.DataObject
) -> None:
    """A lock cut anywhere is refused; one with a wrong byte never ends in a bug."""
    text = lock_text(lock)
    whole = text.rstrip("\n")
    cut = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(RecipeInvalid) as caught:
        parse_lock(text[:cut], "recipe.lock")
    assert caught.value.code in {"lock.unreadable", "lock.schema"}

    at = data.draw(st.integers(0, len(text) - 1))
    garbled = text[:at] + data.draw(st.characters(codec="utf-8")) + text[at + 1 :]
    with suppress(RecipeInvalid):
        parse_lock(garbled, "recipe.lock")


ROWS = st.dictionaries(
    st.tuples(
        st.sampled_from(["a", "b", "c"]), st.sampled_from(["quantize", "compile"])
    ),
    st.dictionaries(
        st.sampled_from(["torch", "numpy", "isal"]), st.sampled_from("123")
    ),
)


@given(ROWS)
def test_every_stage_finds_its_versions(rows: dict[tuple[str, str], Any]) -> None:
    """However far stages agree, each reads back what it had."""
    lock = Lock(
        recipe="x", lmi_build="1", catalog="", architecture="", tools=scoped(rows)
    )

    for (variant, kind), tools in rows.items():
        found = lock.tools_of(variant, kind)
        assert {name: found[name] for name in tools} == tools


@given(ROWS, st.sampled_from(["torch", "numpy"]))
def test_agreed_versions_are_said_once(rows: dict[Any, Any], name: str) -> None:
    """A version that all stages share stands in one place."""
    same = {at: {**tools, name: "9"} for at, tools in rows.items()}

    holders = [scope for scope, tools in scoped(same).items() if name in tools]

    assert holders == ([""] if same else [])


MACHINES = st.builds(
    Machine,
    versions=st.dictionaries(
        st.sampled_from(
            ["torch", "numpy", "onnxruntime", "tokenizers", "transformers"]
        ),
        st.one_of(st.none(), st.sampled_from(["1.0", "2.0"])),
    ),
    architecture=st.sampled_from(["x86_64", "aarch64"]),
    num_cores=st.integers(1, 64),
    threads=st.integers(0, 8),
)


@settings(max_examples=25, deadline=None)
@given(MACHINES)
def test_a_lock_gives_the_same_keys_elsewhere(other: Machine) -> None:
    """With a lock, another machine plans the keys of the one that wrote it."""
    plan, lock = plan_on(Machine())

    there, its_lock = plan_on(other, lock)

    assert keys(there) == keys(plan)
    assert its_lock == lock


@settings(max_examples=25, deadline=None)
@given(MACHINES)
def test_a_stage_never_runs_with_other_tools(other: Machine) -> None:
    """What is locked with other versions, or another processor, is blocked here."""
    _, lock = plan_on(Machine())

    plan, _ = plan_on(other, lock)

    for stage in plan.stages:
        here = other.version(stage.tools)
        same = {name: have or "absent" for name, have in here.items()} == stage.tools
        foreign = stage.platform != "any" and other.architecture != "x86_64"
        assert (stage.blocker is None) == (same and not foreign), stage.name


@settings(max_examples=15, deadline=None)
@given(MACHINES, MACHINES)
def test_recipes_that_are_planned_together_keep_their_locks(
    first: Machine, second: Machine
) -> None:
    """What recipes share is made once, but never by the lock of another."""
    alone = [plan_on(machine) for machine in (first, second)]
    together = [
        replace(recipe, name=f"{recipe.name}-{number}", lock=lock)
        for number, (_, lock) in enumerate(alone)
        for recipe in recipes()
    ]
    here = Machine()
    world = world_of(here, together, settings_of(here))

    plan = make_plan("all", together, world)

    found = {artifact.name: artifact.stages for artifact in plan.artifacts}
    for number, (_, lock) in enumerate(alone):
        its = plan_on(here, lock)[0]
        for artifact in its.artifacts:
            both = found[f"{artifact.name}-{number}"]
            for kind in ("fetch", "quantize", "compile"):
                assert both[kind] == artifact.stages[kind], kind


def one(part: str, entry: str, old: str, new: str, field: str = "") -> LockChange:
    """A single difference."""
    return LockChange(part=part, entry=entry, field=field, old=old, new=new)


MODEL = "acme/tiny@main"
OTHER_COMMIT = "f" * 40


def file_text(machine: Machine, path: str) -> str:
    """What a lock says of a file."""
    fact = next(fact for fact in machine.facts().files if fact.path == path)
    return f"{fact.digest} ({fact.size} bytes)"


EDITED = Machine(contents={"config.json": "edited"})
CHANGES = {
    "tool": (Machine(versions={"numpy": "9"}), one("tools", "numpy", "1.0", "9")),
    "processor": (
        Machine(architecture="aarch64"),
        one("tools", "architecture", "x86_64", "aarch64"),
    ),
    "threads": (Machine(threads=5), one("tools", "threads", "2", "5")),
    "commit": (
        Machine(commit=OTHER_COMMIT),
        one("model", MODEL, COMMIT, OTHER_COMMIT, "commit"),
    ),
    "file": (
        EDITED,
        one(
            "model",
            MODEL,
            file_text(Machine(), "config.json"),
            file_text(EDITED, "config.json"),
            "file config.json",
        ),
    ),
    "version": (
        Machine(maker=("0.2.0", Machine().maker[1])),
        one("lmi-build", "version", "0.1.0", "0.2.0"),
    ),
    "catalog": (
        Machine(maker=("0.1.0", "sha256:" + "b" * 64)),
        one("catalog", "digest", "sha256:" + "a" * 64, "sha256:" + "b" * 64),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_locked_names_exactly_what_moved(name: str) -> None:
    """One thing that moved is one difference, with its two values."""
    machine, change = CHANGES[name]
    _, lock = plan_on(Machine())

    _, now = plan_on(machine, lock, locked=True)

    assert lock_changes(lock, now) == (change,)


@settings(max_examples=15, deadline=None)
@given(st.sets(st.sampled_from(["tool", "processor", "threads", "version", "file"])))
def test_locked_names_all_that_moved(names: set[str]) -> None:
    """Things that moved together are all named, and nothing else."""
    moved = Machine()
    for name in names:
        machine = CHANGES[name][0]
        changed = {
            at: getattr(machine, at)
            for at in Machine.__dataclass_fields__
            if getattr(machine, at) != getattr(Machine(), at)
        }
        moved = replace(moved, **changed)
    _, lock = plan_on(Machine())

    _, now = plan_on(moved, lock, locked=True)

    assert {*lock_changes(lock, now)} == {CHANGES[name][1] for name in names}


def test_cores_are_no_difference() -> None:
    """A number of threads can be followed on any machine."""
    plan, lock = plan_on(Machine())

    there, now = plan_on(Machine(num_cores=64), lock, locked=True)

    assert lock.threads == 2
    assert lock_changes(lock, now) == ()
    assert keys(there) == keys(plan)


def test_nothing_moved_is_no_difference() -> None:
    """`--locked` on the machine that wrote the lock gives its plan."""
    plan, lock = plan_on(Machine())

    there, now = plan_on(Machine(), lock, locked=True)

    assert (keys(there), now) == (keys(plan), lock)


def test_versions_of_jobs_are_not_looked_for_here() -> None:
    """Tools that came from a job's container stay locked on a machine without them."""
    plan, lock = plan_on(Machine(versions={"torch": "7"}))
    lock = replace(lock, jobs=("job-1",))

    there, now = plan_on(Machine(versions={"torch": None}), lock, locked=True)

    assert keys(there) == keys(plan)
    assert now == lock


def test_what_is_absent_is_not_locked() -> None:
    """A tool that is not here has no version to lock, and is followed from here."""
    _, lock = plan_on(Machine(versions={"torch": None}))

    assert all("torch" not in tools for tools in lock.tools.values())
    assert keys(plan_on(Machine(), lock)[0]) == keys(plan_on(Machine())[0])


def test_every_file_is_locked() -> None:
    """A lock names each file that fetch takes."""
    _, lock = plan_on(Machine())

    assert [fact.path for fact in lock.models[0].files] == sorted(FILES)
