"""Laws of manifests and properties over arbitrary values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.digest import Digest
from lmi_build.errors import VerifyFailed
from lmi_build.package.properties import (
    parse_properties,
    property_problem,
    render_properties,
)
from lmi_build.package.worker import make_manifest
from lmi_build.values.manifest import FileEntry, Manifest, unsafe_path_reason
from packed import sample_params

_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\"), min_size=1)
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_DIGESTS = st.binary(min_size=32, max_size=32).map(
    lambda b: Digest("sha256:" + b.hex())
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_PARAMS = sample_params()


def _is_file_tree(paths: list[str]) -> bool:
    return not any(a != b and b.startswith(f"{a}/") for a in paths for b in paths)


@given(
    rows=st.dictionaries(
        _PATHS.filter(lambda path: unsafe_path_reason(path) is None),
        st.tuples(st.integers(0, 1 << 50), _DIGESTS),
    ).filter(lambda rows: _is_file_tree(list(rows)) and "manifest.json" not in rows),
    document=st.dictionaries(st.text(st.characters(codec="utf-8")), _JSON),
)
def test_manifest_round_trips(
    rows: dict[str, tuple[int, Digest]], document: dict[str, Any]
) -> None:
    """Whatever the files and the recipe, reading inverts writing."""
    files = [FileEntry(path=p, size=s, digest=d) for p, (s, d) in rows.items()]
    params = {**_PARAMS, "recipe": document}
    manifest = make_manifest(params, files, ledger=None)
    again = Manifest.from_bytes(manifest.to_bytes())

    assert again.files == manifest.files
    assert again.recipe == document
    assert again.to_bytes() == manifest.to_bytes()


@given(data=st.binary())
def test_any_bytes_are_refused(data: bytes) -> None:
    """Bytes that are no manifest always fail with a coded error."""
    with pytest.raises(VerifyFailed) as caught:
        Manifest.from_bytes(data)
    assert caught.value.code.startswith("verify.manifest-")


@given(cut=st.integers(0, 2000))
def test_truncated_manifests_are_refused(cut: int) -> None:
    """No proper beginning of a manifest is a manifest."""
    whole = make_manifest(_PARAMS, [], ledger=None).to_bytes()
    short = whole[: min(cut, len(whole) - 2)]

    with pytest.raises(VerifyFailed) as caught:
        Manifest.from_bytes(short)
    assert caught.value.code == "verify.manifest-unreadable"


def java_properties(data: bytes) -> dict[str, str]:
    """
    Read as `java.util.Properties.load(InputStream)` does, by its documentation.

    Latin-1; natural lines joined by a trailing odd backslash, with the next line's
    leading white space dropped; `#` and `!` comments; a key ends at the first
    unescaped `=`, `:` or white space; backslash escapes in both.
    """
    lines, pending = [], ""
    text = data.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    for natural in text.split("\n"):
        line = natural.lstrip(" \t\f")
        if not pending and (not line or line[0] in "#!"):
            continue
        pending += line
        slashes = len(pending) - len(pending.rstrip("\\"))
        if slashes % 2:
            pending = pending[:-1]
            continue
        lines.append(pending)
        pending = ""
    if pending:
        lines.append(pending)
    return dict(_java_pair(line) for line in lines)


def _java_pair(line: str) -> tuple[str, str]:
    index = 0
    while index < len(line) and line[index] not in "=: \t\f":
        index += 2 if line[index] == "\\" else 1
    key, rest = line[:index], line[index:].lstrip(" \t\f")
    if rest[:1] in {"=", ":"}:
        rest = rest[1:].lstrip(" \t\f")
    return _java_unescape(key), _java_unescape(rest)


def _java_unescape(text: str) -> str:
    out, index = "", 0
    while index < len(text):
        if text[index] != "\\":
            out += text[index]
            index += 1
            continue
        letter = text[index + 1 : index + 2]
        if letter == "u":
            out += chr(int(text[index + 2 : index + 6], 16))
            index += 6
        else:
            out += {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}.get(letter, letter)
            index += 2
    return out


def python_properties(data: bytes) -> dict[str, str]:
    """Read as LMI's Python tools do: cut at the first `=`, strip both sides."""
    found = {}
    for line in data.decode("utf-8").split("\n"):
        if line.startswith("#") or not line.strip():
            continue
        key, value = line.strip().split("=", 1)
        found[key.strip()] = value.strip()
    return found


_ANY_TEXT = st.text(max_size=12) | st.text("ab =:#!\\\t\n. ", max_size=8)


@given(entries=st.dictionaries(_ANY_TEXT, _ANY_TEXT, max_size=4))
def test_both_parsers_agree(entries: dict[str, str]) -> None:
    """Every set of entries is refused, or read by all three readers as it was meant."""
    refused = [k for k, v in entries.items() if property_problem(k, v) is not None]
    if refused:
        with pytest.raises(ValueError, match=r"property|value|weights"):
            render_properties(entries)
        return
    data = render_properties(entries)

    assert java_properties(data) == entries
    assert python_properties(data) == entries
    assert parse_properties(data) == entries


@given(
    entries=st.dictionaries(
        st.from_regex(r"[a-z][a-z_.]{0,8}", fullmatch=True),
        st.from_regex(r"[!-\[\]-~][ -\[\]-~]{0,6}[!-\[\]-~]", fullmatch=True),
        max_size=5,
    )
)
def test_ordinary_entries_are_accepted(entries: dict[str, str]) -> None:
    """Printable ASCII without backslashes is always writable."""
    assert [k for k, v in entries.items() if property_problem(k, v)] == []
    assert java_properties(render_properties(entries)) == entries


@given(data=st.binary(max_size=60) | st.text("a=#!:\\ \n", max_size=30).map(str.encode))
def test_accepted_files_have_one_reading(data: bytes) -> None:
    """A file that the strict reader takes is taken alike by both of LMI's readers."""
    try:
        entries = parse_properties(data)
    except VerifyFailed:
        return
    assert java_properties(data) == entries
    assert python_properties(data) == entries
