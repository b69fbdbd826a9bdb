"""`serving.properties` as the front end's Java reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.backends.java_properties import java_properties, with_environment
from lmi_build.package.properties import render_properties

KEYS = st.from_regex(r"option\.[a-z_]{1,20}", fullmatch=True)
VALUES = st.text(
    alphabet=st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\")
)


# Every expectation is what `java.util.Properties` of Java 17 gave.
@pytest.mark.parametrize(
    ("data", "entries"),
    [
        (b"engine=Python\n", {"engine": "Python"}),
        (b"engine = Python", {"engine": "Python"}),
        (b"engine:Python", {"engine": "Python"}),
        (b"engine Python", {"engine": "Python"}),
        (b"engine\tPython\r\nb=2", {"engine": "Python", "b": "2"}),
        (b"# a=1\n! b=2\n  # c=3\nd=4", {"d": "4"}),
        (b"a=1\na=2", {"a": "2"}),
        (b"a=one,\\\n   two", {"a": "one,two"}),
        (b"a=1\\", {"a": "1"}),
        (b"a=\\\\\nb=2", {"a": "\\", "b": "2"}),
        (b"a\\=b=c", {"a=b": "c"}),
        (b"a\\:b=c\\td\\u00e9", {"a:b": "c\td\xe9"}),
        (b"a=b=c", {"a": "b=c"}),
        (b"a", {"a": ""}),
        (b"a=1   ", {"a": "1   "}),
        (b"\\\n#a=1\nb=2", {"b": "2"}),
        (b"\\\n", {"": ""}),
        (b"\\\r\n", {}),
        (b"a=\xe9", {"a": "\xe9"}),
        (b"", {}),
    ],
)
def test_every_spelling_is_read_as_java_reads_it(
    data: bytes, entries: dict[str, str]
) -> None:
    assert java_properties(data) == entries


@pytest.mark.parametrize("data", [b"a=\\u12", b"a=\\uzzzz", b"\\u=1"])
def test_a_broken_escape_ends_the_reading(data: bytes) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        java_properties(data)


@given(entries=st.dictionaries(KEYS, VALUES, max_size=8))
def test_what_we_write_is_read_back(entries: dict[str, str]) -> None:
    assert java_properties(render_properties(entries)) == entries


@given(data=st.binary(max_size=200).filter(lambda data: b"\\u" not in data))
def test_any_other_bytes_are_read(data: bytes) -> None:
    """A name is found on every line that says anything, and none is found twice."""
    entries = java_properties(data)

    assert len(entries) <= data.count(b"\n") + data.count(b"\r") + 1


def test_the_environment_fills_what_the_file_leaves_open() -> None:
    merged = with_environment(
        {"option.dtype": "fp16"},
        {
            "OPTION_DTYPE": "bf16",
            "OPTION_MAX_INPUT_LEN": "7",
            "OPTION_ENTRYPOINT": "x.py",
            "OPTION_ENGINE": "MPI",
            "OPTION_entryPoint2": "y",
            "OPTION_EMPTY": "",
            "SERVING_LOG": "info",
        },
    )

    assert merged == {
        "option.dtype": "fp16",
        "option.max_input_len": "7",
        "option.entryPoint": "x.py",
        "engine": "MPI",
        "option.entryPoint2": "y",
    }
