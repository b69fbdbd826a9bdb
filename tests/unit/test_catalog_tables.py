"""Data files are read strictly: a fault names the file, the table and the key."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.catalog.tables import parse_tables, read_row


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One field of every kind that the catalogue has."""

    text: str
    count: int
    share: float
    known: bool
    words: tuple[str, ...]
    default: bool | int | str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    pairs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


GOOD: dict[str, Any] = {
    "text": "a",
    "count": 1,
    "share": 0.5,
    "known": True,
    "words": ["x", "y"],
    "default": "z",
    "names": {"k": "v"},
    "pairs": {"k": [1, 2]},
}
# What TOML can hold, for each a value of that kind only.
VALUES = st.one_of(
    st.text(),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.lists(st.text(), min_size=1),
    st.dictionaries(st.text(), st.text(), min_size=1),
)
KINDS = {
    "text": (str,),
    "count": (int,),
    "share": (float,),
    "known": (bool,),
    "words": (list,),
    "default": (bool, int, str),
    "names": (dict,),
}


def test_a_good_table_is_read_with_read_only_values() -> None:
    row = read_row(Sample, GOOD, where="f.toml: [a]")
    assert row.words == ("x", "y")
    assert row.pairs["k"] == (1, 2)
    with pytest.raises(TypeError):
        row.names["k"] = "w"  # type: ignore[index]


def test_keys_with_defaults_may_be_left_out() -> None:
    needed = {key: GOOD[key] for key in ("text", "count", "share", "known", "words")}
    assert read_row(Sample, needed, where="f.toml: [a]").default is None


@given(key=st.sampled_from(sorted(KINDS)), value=VALUES)
def test_a_value_of_another_type_is_refused_by_name(key: str, value: object) -> None:
    table = {**GOOD, key: value}
    if type(value) in KINDS[key]:
        read_row(Sample, table, where="f.toml: [a]")
        return
    with pytest.raises(ValueError, match=rf"f\.toml: \[a\], `{key}` is "):
        read_row(Sample, table, where="f.toml: [a]")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("text", 3, "`text` is 3, not a text in quotes"),
        ("count", "3", '`count` is "3", not a whole number'),
        ("words", "x", '`words` is "x", not a list, each entry a text in quotes'),
        ("words", [True], "`words` is true, not a text in quotes"),
    ],
)
def test_a_wrong_value_is_told_in_words_of_the_file(
    key: str, value: Any, said: str
) -> None:
    """No type of Python's is named."""
    with pytest.raises(ValueError, match="not a") as caught:
        read_row(Sample, {**GOOD, key: value}, where="f.toml: [a]")
    assert str(caught.value) == f"f.toml: [a], {said}"


@given(key=st.sampled_from(sorted(KINDS)))
def test_no_message_has_a_word_of_python(key: str) -> None:
    """For any field, whatever its type."""
    wrong = dt.date(2026, 1, 1)
    with pytest.raises(ValueError, match="2026-01-01") as caught:
        read_row(Sample, {**GOOD, key: wrong}, where="f.toml: [a]")
    after = str(caught.value).partition(", not ")[2]
    words = r"\b(str|int|float|bool|None|NoneType|tuple|Mapping|dict)\b"
    assert after
    assert not re.search(words, after)


@given(key=st.text())
def test_an_unknown_key_is_refused_by_name(key: str) -> None:
    if key in {item.name for item in fields(Sample)}:
        return
    with pytest.raises(ValueError, match="unknown keys") as caught:
        read_row(Sample, {**GOOD, key: "a"}, where="f.toml: [a]")
    assert repr(key) in str(caught.value)
    assert str(caught.value).startswith("f.toml: [a] ")


@pytest.mark.parametrize("key", ["text", "count", "share", "known", "words"])
def test_a_missing_key_is_refused_by_name(key: str) -> None:
    table = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(ValueError, match=rf"f\.toml: \[a\] lacks \['{key}'\]"):
        read_row(Sample, table, where="f.toml: [a]")


def test_a_wrong_entry_of_a_list_or_table_is_refused_by_name() -> None:
    for key, value in (
        ("words", ["x", 1]),
        ("names", {"k": 1}),
        ("pairs", {"k": [1, "2"]}),
    ):
        with pytest.raises(ValueError, match=f"`{key}`"):
            read_row(Sample, {**GOOD, key: value}, where="f.toml: [a]")


def test_text_beside_tables_is_refused_with_the_file() -> None:
    with pytest.raises(ValueError, match=r"f\.toml has \['loose'\] outside of tables"):
        parse_tables("loose = 1\n[a]\nx = 1\n", "f.toml")
    with pytest.raises(ValueError, match=r"^f\.toml: "):
        parse_tables("[a\n", "f.toml")
