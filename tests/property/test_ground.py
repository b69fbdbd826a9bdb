"""Laws of the ground floor: events, digests, sizes, plans."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build import events
from lmi_build.digest import canonical_json, digest_bytes, digest_json, digest_tree
from lmi_build.plan.explain import diff
from lmi_build.plan.saved import plan_from_json, plan_to_json
from lmi_build.text import did_you_mean
from lmi_build.units import format_bytes, parse_bytes
from lmi_build.values.stage import Plan, PlannedArtifact, Stage

TEXT = st.text(max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | TEXT
    | st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
    ),
    max_leaves=12,
)
DIGESTS = st.binary(max_size=4).map(digest_bytes)


def _value(kind: str) -> st.SearchStrategy[Any]:
    return {
        "str": TEXT,
        "int": st.integers(0, 2**60),
        "float": st.floats(0, 1e6),
        "bool": st.booleans(),
        "tuple[str, ...]": st.lists(TEXT, max_size=3).map(tuple),
    }[kind]


EVENTS = st.one_of(
    *[
        st.builds(cls, **{f.name: _value(str(f.type)) for f in fields(cls)})
        for cls in get_args(events.Event)
    ]
)
STAGES = st.builds(
    Stage,
    name=st.from_regex(r"[a-z][a-z0-9]{0,6}/[a-z]{1,6}", fullmatch=True),
    kind=st.sampled_from(["fetch", "quantize", "compile"]),
    params=st.dictionaries(TEXT, JSON, max_size=3),
    inputs=st.dictionaries(
        st.sampled_from(["model", "checkpoint", "engine"]), DIGESTS, max_size=2
    ),
    tools=st.dictionaries(TEXT, TEXT, max_size=2),
    platform=TEXT,
    salt=st.integers(0, 9),
    entry=st.just("m:a"),
    job=st.dictionaries(TEXT, SCALARS, max_size=2),
)


@given(EVENTS)
def test_events_survive_their_json(event: events.Event) -> None:
    """Reading a written event gives the event, on one line."""
    line = events.to_json(event)

    assert "\n" not in line
    assert events.from_json(line) == event


@given(JSON)
def test_canonical_json_is_a_fixed_point(value: Any) -> None:
    """Reading and writing canonical JSON again changes nothing."""
    data = canonical_json(value)

    assert canonical_json(json.loads(data)) == data


@given(st.dictionaries(TEXT, JSON, min_size=2, max_size=5))
def test_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    """Equal mappings have equal digests whatever their order."""
    backwards = dict(reversed(list(value.items())))

    assert digest_json(value) == digest_json(backwards)


@given(st.lists(st.tuples(TEXT, DIGESTS, st.integers(0, 99)), max_size=4))
def test_order_of_files_does_not_matter(rows: list[Any]) -> None:
    """A tree's name does not depend on the order its files are listed in."""
    assert digest_tree(rows) == digest_tree(reversed(rows))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, float("-inf")]])
def test_numbers_json_does_not_know_are_refused(value: Any) -> None:
    """A NaN never becomes part of a name."""
    with pytest.raises(ValueError, match="no canonical JSON form"):
        canonical_json(value)


@given(STAGES, st.sampled_from(["params", "inputs", "tools", "platform", "salt"]), TEXT)
def test_what_can_change_a_byte_changes_the_key(
    stage: Stage, field: str, word: str
) -> None:
    """Every field of the key document moves the key, and `diff` names it."""
    old = getattr(stage, field)
    if isinstance(old, dict):
        new: Any = {**old, f"{word}!": "new"}
    else:
        new = old + 1 if isinstance(old, int) else f"{old}!"
    changed = replace(stage, **{field: new})

    changes = list(diff(stage.key_document(), changed.key_document()))

    assert changed.key != stage.key
    assert [change.path.partition(".")[0] for change in changes] == [field]


@given(STAGES, TEXT, st.dictionaries(TEXT, TEXT, min_size=1, max_size=2))
def test_what_changes_no_byte_leaves_the_key(
    stage: Stage, name: str, job: dict[str, str]
) -> None:
    """Names, places and settings are not in the key."""
    assert replace(stage, name=name, job=job, entry="o:p").key == stage.key


@given(st.lists(STAGES, min_size=1, max_size=3))
def test_plans_survive_their_file(stages: list[Stage]) -> None:
    """Reading a saved plan gives the plan."""
    artifact = PlannedArtifact(name="a", stages={s.kind: s.key for s in stages})
    plan = Plan(recipe="r", stages=tuple(stages), artifacts=(artifact,))

    again = plan_from_json(json.dumps(plan_to_json(plan)).encode(), "p.json")

    assert [stage.key for stage in again.stages] == [stage.key for stage in stages]
    assert again.artifacts == plan.artifacts


@given(STAGES)
def test_edited_plan_is_refused(stage: Stage) -> None:
    """A saved plan whose parameters were changed by hand does not load."""
    from lmi_build.errors import UsageInvalid

    document = plan_to_json(Plan(recipe="r", stages=(stage,), artifacts=()))
    document["stages"][0]["params"]["edited"] = True

    with pytest.raises(UsageInvalid, match="does not make its key"):
        plan_from_json(json.dumps(document).encode(), "p.json")


@given(st.integers(0, 2**50))
def test_sizes_are_read_as_they_are_written(count: int) -> None:
    """A printed size reads back within its rounding."""
    again = parse_bytes(format_bytes(count))

    assert abs(again - count) <= max(1, count // 19)


@given(st.text(alphabet="abcdef_", min_size=3, max_size=9))
def test_a_word_is_nearest_to_itself(word: str) -> None:
    """A correct word is its own suggestion."""
    assert did_you_mean(word, [word, "zzzzzzzz"]) == word
