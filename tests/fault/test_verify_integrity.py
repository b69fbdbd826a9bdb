"""Every way in which an artifact can be damaged is found, and found by name."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.errors import VerifyFailed
from lmi_build.verify.integrity import check_tree, read_manifest, refuse_if_damaged
from packed import echo_artifact, entry

if TYPE_CHECKING:
    from pathlib import Path

FILES = (
    "README.md",
    "engine/graph.bin",
    "lmi_build.json",
    "model.py",
    "serving.properties",
    "tokenizer.json",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole artifact."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    echo_artifact(folder, architecture="x86_64")
    return folder


def _codes(root: Path) -> set[tuple[str, str]]:
    return {(problem.code, problem.path) for problem in check_tree(root)}


def _reseal(root: Path, **changes: Any) -> None:
    """Write a manifest that fits the files again, as a forger would."""
    document = json.loads((root / "manifest.json").read_bytes())
    document.update(changes)
    document["files"] = [
        {
            "path": row["path"],
            "size": entry(root, row["path"]).size,
            "sha256": entry(root, row["path"]).digest.removeprefix("sha256:"),
        }
        for row in document["files"]
    ]
    (root / "manifest.json").write_text(json.dumps(document))


def test_whole_artifact_has_no_problems(root: Path) -> None:
    """What was just written passes."""
    assert check_tree(root) == ()
    assert refuse_if_damaged(root).digest == read_manifest(root).digest


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_is_found(root: Path, name: str) -> None:
    """One bit of any file is enough."""
    data = bytearray((root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (root / name).write_bytes(data)

    assert _codes(root) == {("verify.file-changed", name)}


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_found(root: Path, name: str) -> None:
    """A file that the manifest names must be there."""
    (root / name).unlink()

    assert ("verify.file-missing", name) in _codes(root)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_found_without_hashing(root: Path, name: str) -> None:
    """A wrong size is seen even when content is not read."""
    (root / name).write_bytes((root / name).read_bytes()[:-1])

    codes = {(p.code, p.path) for p in check_tree(root, hashes=False)}
    assert ("verify.file-changed", name) in codes


@pytest.mark.parametrize("name", ["extra.py", "engine/extra.bin", "deep/er/x"])
def test_extra_file_is_found(root: Path, name: str) -> None:
    """What the manifest does not name may not lie there."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("x")

    assert _codes(root) == {("verify.file-extra", name)}


def test_published_records_may_lie_beside(root: Path) -> None:
    """verify.json and build.json come along when an artifact is fetched back."""
    (root / "verify.json").write_text("{}")
    (root / "build.json").write_text("{}")

    assert check_tree(root) == ()


def test_links_are_refused(root: Path, tmp_path: Path) -> None:
    """A link is never followed, even to the right bytes or to a folder."""
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.move(root / "README.md", outside / "README.md")
    (root / "README.md").symlink_to(outside / "README.md")
    (root / "folder").symlink_to(outside)

    codes = _codes(root)
    assert ("verify.not-a-regular-file", "README.md") in codes
    assert ("verify.not-a-regular-file", "folder") in codes


@pytest.mark.parametrize("length", [0, 1, 100, -2])
def test_truncated_manifest_is_found(root: Path, length: int) -> None:
    """A manifest that was cut short is no manifest."""
    data = (root / "manifest.json").read_bytes()
    (root / "manifest.json").write_bytes(data[:length])

    with pytest.raises(VerifyFailed) as caught:
        refuse_if_damaged(root)
    assert caught.value.code == "verify.manifest-unreadable"
    assert caught.value.hints


def test_missing_manifest_and_folder_are_named(root: Path) -> None:
    """The commit record is what makes a folder an artifact."""
    (root / "manifest.json").unlink()
    assert {p.code for p in check_tree(root)} == {"verify.manifest-missing"}
    assert {p.code for p in check_tree(root / "no")} == {"verify.not-an-artifact"}


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("serving.properties", "engine=Python\n", "verify.inconsistent"),
        ("serving.properties", "engine: Python\n", "verify.properties-ambiguous"),
        ("lmi_build.json", '{"bounds": {"max_input_len": 65}}', "verify.inconsistent"),
        ("lmi_build.json", "{}", "verify.inconsistent"),
        ("lmi_build.json", "[", "verify.inconsistent"),
        ("requirements.txt", "torch>=2\n", "verify.requirement-not-pinned"),
        ("requirements.txt", "-e .\n", "verify.requirement-not-pinned"),
    ],
)
def test_files_that_disagree_are_found(
    root: Path, name: str, text: str, code: str
) -> None:
    """Right hashes are not enough: the files must agree with the bounds."""
    (root / name).write_text(text)
    _reseal(root)

    assert {(code, name)} == _codes(root)


@pytest.mark.parametrize("name", ["config.json", "config.pbtxt"])
def test_misleading_root_files_are_found(root: Path, name: str) -> None:
    """A file that makes DJL Serving load something else is refused, even if listed."""
    (root / name).write_text("{}")
    document = json.loads((root / "manifest.json").read_bytes())
    row = {"path": name, "size": 0, "sha256": ""}
    rows = sorted([*document["files"], row], key=lambda r: str(r["path"]))
    document["files"] = rows
    (root / "manifest.json").write_text(json.dumps(document))
    _reseal(root)

    assert _codes(root) == {("verify.inconsistent", name)}


def test_bound_in_properties_must_be_the_manifests(root: Path) -> None:
    """A raised bound in serving.properties does not go unseen."""
    properties = (root / "serving.properties").read_text()
    raised = properties.replace("max_input_len=64", "max_input_len=640")
    (root / "serving.properties").write_text(raised)
    _reseal(root)
    messages = [problem.message for problem in check_tree(root)]

    assert any("640" in message and "64" in message for message in messages)


def test_every_problem_has_a_way_out(root: Path) -> None:
    """All faults at once, each with a hint, the error naming the first."""
    for name in FILES[:3]:
        (root / name).unlink()
    (root / "extra").write_text("x")
    problems = check_tree(root)

    assert len(problems) >= 4
    assert all(problem.hint for problem in problems)
    with pytest.raises(VerifyFailed) as caught:
        refuse_if_damaged(root)
    assert caught.value.code == problems[0].code
    assert len(caught.value.hints) >= 1
