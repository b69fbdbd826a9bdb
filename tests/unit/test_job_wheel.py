"""The wheel that a job installs is the running package, whole, the same each time."""

from __future__ import annotations

import csv
import fnmatch
import io
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest

import lmi_build
from lmi_build.errors import ToolMissing
from lmi_build.jobs import wheel

ROOT = Path(lmi_build.__file__).parents[2]

tomllib = pytest.importorskip("tomllib", reason="Python 3.11")


def members(built: wheel.Wheel) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(built.data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_equal_packages_give_equal_bytes() -> None:
    assert wheel.make_wheel() == wheel.make_wheel()


def test_members_are_sorted_and_carry_no_time_of_their_own() -> None:
    with zipfile.ZipFile(io.BytesIO(wheel.make_wheel().data)) as archive:
        found = archive.infolist()

    names = [item.filename for item in found]
    assert names[:-1] == sorted(names[:-1])
    assert names[-1].endswith(".dist-info/RECORD")
    assert {item.date_time for item in found} == {(1980, 1, 1, 0, 0, 0)}
    assert {item.external_attr >> 16 for item in found} == {0o100644}


def test_every_source_and_every_declared_data_file_is_in_it() -> None:
    """What an ordinary build would pack, no more and no less."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = declared["tool"]["setuptools"]["package-data"]["lmi_build"]
    package = Path(lmi_build.__file__).parent
    held = {
        name.removeprefix("lmi_build/")
        for name in members(wheel.make_wheel())
        if name.startswith("lmi_build/")
    }
    wanted = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "__pycache__" not in path.parts
    }
    for pattern in patterns:
        wanted |= {p.relative_to(package).as_posix() for p in package.glob(pattern)}
    strange = {
        name
        for name in held - wanted
        if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }

    assert wanted <= held
    assert strange == set()


def test_the_record_names_every_member_with_its_digest() -> None:
    found = members(wheel.make_wheel())
    record = next(name for name in found if name.endswith("/RECORD"))
    rows = list(csv.reader(io.StringIO(found[record].decode())))

    assert {row[0] for row in rows} == set(found)
    for path, digest, size in rows:
        if path != record:
            assert digest == f"sha256={wheel._sha256(found[path])}"
            assert int(size) == len(found[path])


def test_its_metadata_and_its_providers_are_those_of_the_installation() -> None:
    found = members(wheel.make_wheel())
    info = f"lmi_build-{lmi_build.__version__}.dist-info"
    core = message_from_bytes(found[f"{info}/METADATA"])

    assert core["Name"] == "lmi-build"
    assert core["Version"] == lmi_build.__version__
    assert "[lmi_build.backends]" in found[f"{info}/entry_points.txt"].decode()


def test_what_lies_about_in_a_folder_is_left_out(tmp_path: Path) -> None:
    for name in (
        "a.py",
        "b/c.toml",
        ".hidden",
        "__pycache__/a.pyc",
        "a.pyc",
        "a.py~",
        "b/.cache/x.py",
        "c.orig",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    kept = [p.relative_to(tmp_path).as_posix() for p in wheel.package_files(tmp_path)]

    assert kept == ["a.py", "b/c.toml"]


def test_a_package_that_is_not_installed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wheel, "DISTRIBUTION", "lmi-build-of-nobody")
    with pytest.raises(ToolMissing) as caught:
        wheel.make_wheel()

    assert caught.value.code == "job.no-metadata"


def test_another_version_than_the_installed_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lmi_build, "__version__", "99.0")
    with pytest.raises(ToolMissing) as caught:
        wheel.make_wheel()

    assert caught.value.code == "job.no-metadata"
    assert "99.0" in caught.value.message


def test_pip_installs_it_in_a_fresh_environment(tmp_path: Path) -> None:
    """And the wheel made from that ordinary installation is the same, byte by byte."""
    built = wheel.make_wheel()
    file = tmp_path / built.name
    file.write_bytes(built.data)
    target = tmp_path / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-index", "--no-compile", "--disable-pip-version-check"),
            *("--target", str(target), str(file)),
        ],
        check=True,
        capture_output=True,
    )
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from lmi_build.jobs.wheel import make_wheel\n"
        "from lmi_build import registry\n"
        "assert registry.names(registry.BACKENDS)\n"
        "open(sys.argv[2], 'wb').write(make_wheel().data)\n"
    )
    again = tmp_path / "again.whl"
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(target), str(again)],
        check=True,
    )

    assert metadata.Distribution.at(
        target / f"lmi_build-{lmi_build.__version__}.dist-info"
    ).version
    assert again.read_bytes() == built.data
