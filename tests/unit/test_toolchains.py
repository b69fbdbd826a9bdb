"""Private environments, made by real pip from wheels in a folder, without a network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from desk import Desk
from lmi_build.catalog.toolchains import Step, Toolchain, load_toolchains
from lmi_build.errors import RemoteFailed, ToolMissing, Unsupported
from lmi_build.toolchains.environment import (
    find_installed,
    folder_of,
    in_use,
    pinned_toolchain,
    toolchains_dir,
    wrong_versions,
)
from lmi_build.toolchains.install import install, remove
from lmi_build.toolchains.interpreter import find_python
from lmi_build.toolchains.report import diagnose_toolchain, list_toolchains
from lmi_build.values.settings import Settings
from wheels import make_wheel

if TYPE_CHECKING:
    from pathlib import Path

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def toolchain(*packages: str, lock: tuple[str, ...] = ()) -> Toolchain:
    """A toolchain of sample packages."""
    return Toolchain(
        name="sample",
        summary="a sample",
        python=(HERE,),
        steps=(Step(packages=packages or ("squash==1.0",)),),
        lock=lock,
        imports=("squash",),
        tried="here",
        notes="",
    )


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder of wheels: `squash` in two versions, and what it needs in two."""
    folder = tmp_path / "shelf"
    for version in ("1.0", "2.0"):
        make_wheel(folder, "squash", version, requires=["pulp>=1"])
        make_wheel(folder, "pulp", version)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A store of its own."""
    return Settings(
        cache_dir=tmp_path / "store",
        worker_environment={"PATH": os.environ["PATH"]},
    )


def environ(shelf: Path) -> dict[str, str]:
    """A user's environment whose pip knows the shelf and nothing else."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(shelf),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(shelf),
    }


def leftovers(settings: Settings) -> set[str]:
    """Folders below `toolchains`, without locks and logs."""
    root = toolchains_dir(settings)
    return {path.name for path in root.iterdir() if path.is_dir()}


def test_install_verifies_names_and_is_found_again(
    shelf: Path, settings: Settings
) -> None:
    """Pins and locked versions are taken; a second install needs no program at all."""
    pins = toolchain("squash==1.0", lock=("pulp==1.0",))

    found, made = install(pins, settings, environ(shelf))
    (shelf / "squash-1.0-py3-none-any.whl").unlink()
    again, made_again = install(pins, settings, {"PATH": str(shelf)})

    assert (made, made_again) == (True, False)
    assert again == found == find_installed(pins, settings)
    assert found.versions["squash"] == "1.0"
    assert found.versions["pulp"] == "1.0"
    assert leftovers(settings) == {found.folder.name}
    code = "import sys, squash; print(squash.__version__, sys.prefix)"
    told = subprocess.run(
        [found.interpreter, "-c", code], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["1.0", str(found.folder)]
    pip = (found.folder / "bin" / "pip").read_text()
    assert ".partial" not in pip


def test_pins_not_there_end_with_pips_words_and_leave_nothing(
    shelf: Path, settings: Settings
) -> None:
    """A version that no index has: exit 3, pip's last lines, nothing installed."""
    with pytest.raises(ToolMissing) as failure:
        install(toolchain("squash==9.9"), settings, environ(shelf))

    assert failure.value.code == "toolchain.install"
    assert "No matching distribution found for squash==9.9" in failure.value.message
    assert leftovers(settings) == set()


def test_offline_install_names_what_keeps_it_from_an_index(
    shelf: Path, settings: Settings
) -> None:
    """Offline only `find-links` is looked at; what stands in the way is the flag."""
    offline = replace(settings, offline=True)
    with_index = environ(shelf)
    del with_index["PIP_NO_INDEX"]
    found, made = install(toolchain(), offline, with_index)
    del with_index["PIP_FIND_LINKS"]

    with pytest.raises(ToolMissing) as failure:
        install(toolchain("pulp==1.0"), offline, with_index)

    assert made
    assert found.versions["squash"] == "1.0"
    assert failure.value.code == "toolchain.install"
    assert "leave out `--offline`" in failure.value.hints[0]
    assert leftovers(settings) == {found.folder.name}


def test_package_that_does_not_import_is_refused(
    shelf: Path, settings: Settings
) -> None:
    """What pip installs happily and Python cannot import never counts."""
    make_wheel(shelf, "squash", "3.0", source="import nothing_of_that_name\n")

    with pytest.raises(ToolMissing) as failure:
        install(toolchain("squash==3.0"), settings, environ(shelf))

    assert failure.value.code == "toolchain.imports"
    assert "nothing_of_that_name" in failure.value.message
    assert leftovers(settings) == set()


def test_index_out_of_reach_is_a_failure_of_the_network(
    shelf: Path, settings: Settings
) -> None:
    """Exit 6 where nothing answers, so that a script may try again."""
    nowhere = environ(shelf) | {"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    nowhere |= {"PIP_RETRIES": "1"}
    del nowhere["PIP_NO_INDEX"], nowhere["PIP_FIND_LINKS"]

    with pytest.raises(RemoteFailed) as failure:
        install(toolchain(), settings, nowhere)

    assert failure.value.code == "toolchain.network"
    assert failure.value.exit_code == 6


def test_install_that_was_killed_leaves_nothing_that_counts(
    shelf: Path, settings: Settings, tmp_path: Path
) -> None:
    """SIGKILL in the middle; the next install begins anew and sweeps the rest."""
    make_wheel(shelf, "squash", "4.0", source="import time\ntime.sleep(60)\n")
    (tmp_path / "own.toml").write_text(
        f'[sample]\nsummary = "a sample"\npython = ["{HERE}"]\n'
        'steps = [{ packages = ["squash==4.0"] }]\nimports = ["squash"]\n'
    )
    desk = Desk(
        tmp_path,
        {**environ(shelf), "LMI_BUILD_TOOLCHAINS": str(tmp_path / "own.toml")},
    )
    process = subprocess.Popen(
        desk.arguments("toolchain", "install", "sample"),
        cwd=tmp_path,
        env=desk.environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("importing"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    left = leftovers(settings)

    state = desk.run("toolchain", "list", "--output", "json").json
    install(toolchain(), settings, environ(shelf))

    assert [name.split("-")[0] for name in left] == [".partial"]
    assert {row["name"]: row["status"] for row in state}["sample"] == "missing"
    assert leftovers(settings) == {folder_of(toolchain(), settings).name}


def test_installs_at_the_same_time_are_one(
    shelf: Path, settings: Settings, tmp_path: Path
) -> None:
    """Of two installs one makes the environment, the other waits and finds it."""
    (tmp_path / "own.toml").write_text(
        f'[sample]\nsummary = "a sample"\npython = ["{HERE}"]\n'
        'steps = [{ packages = ["squash==1.0"] }]\nimports = ["squash"]\n'
    )
    desk = Desk(
        tmp_path,
        {**environ(shelf), "LMI_BUILD_TOOLCHAINS": str(tmp_path / "own.toml")},
    )
    command = desk.arguments("toolchain", "install", "sample", "--output", "json")

    both = [
        subprocess.Popen(
            command, cwd=tmp_path, env=desk.environment, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    told = [json.loads(process.communicate()[0]) for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sorted(row["made"] for row in told) == [False, True]
    assert len(leftovers(settings)) == 1


def test_doctor_sees_what_was_changed_by_hand(shelf: Path, settings: Settings) -> None:
    """Another version, a module that fails, a marker that went: told, and mended."""
    found, _ = install(toolchain(), settings, environ(shelf))
    sound = diagnose_toolchain(toolchain(), settings)
    pip = [str(found.interpreter), "-m", "pip", "install", "-q", "squash==2.0"]
    subprocess.run(pip, env=environ(shelf), check=True)
    moved = diagnose_toolchain(toolchain(), settings)
    site = next((found.folder / "lib").glob("python*/site-packages"))
    (site / "squash.py").write_text("raise RuntimeError('worm-eaten')\n")
    failing = diagnose_toolchain(toolchain(), settings)
    (found.folder / "toolchain.json").unlink()
    damaged = diagnose_toolchain(toolchain(), settings)
    again, made = install(toolchain(), settings, environ(shelf))

    assert (sound.status, sound.fix) == ("installed", "")
    assert (moved.status, moved.evidence) == (
        "broken",
        "squash is 2.0, pinned 1.0",
    )
    assert failing.status == "broken"
    assert "worm-eaten" in failing.evidence
    assert damaged.status == "broken"
    assert "toolchain install sample" in damaged.fix
    assert (made, again.folder) == (True, found.folder)


def test_remove_takes_every_environment_of_the_name(
    shelf: Path, settings: Settings
) -> None:
    """Older pins go too; a toolchain whose name only begins so stays."""
    found, _ = install(toolchain("squash==1.0"), settings, environ(shelf))
    older = found.folder.with_name("sample-000000000000")
    (older / "bin").mkdir(parents=True)
    (older / "bin" / "python").touch()
    (older / "toolchain.json").write_bytes(
        (found.folder / "toolchain.json").read_bytes()
    )
    stranger = toolchains_dir(settings) / "sample-two-0123456789ab"
    stranger.mkdir()
    before = list_toolchains([toolchain()], settings)[0]

    freed = remove(toolchain(), settings)

    assert before.num_older == 1
    assert freed > 0
    assert leftovers(settings) == {stranger.name}
    assert list_toolchains([toolchain()], settings)[0].status == "missing"


def test_toolchain_in_use_is_not_removed(shelf: Path, settings: Settings) -> None:
    """While a worker holds it, `remove` says so and touches nothing."""
    known = load_toolchains()["autoawq"]
    folder = folder_of(known, settings)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / "toolchain.json").write_text(
        json.dumps(
            {
                "schema": "lmi-build/toolchain/v1",
                "python": HERE,
                "versions": dict(known.pins),
                "num_bytes": 1,
            }
        )
    )

    with in_use("autoawq", settings), pytest.raises(ToolMissing) as failure:
        remove(known, settings)

    assert failure.value.code == "toolchain.in-use"
    assert find_installed(known, settings) is not None


def test_python_of_another_version_is_looked_for(settings: Settings) -> None:
    """No interpreter that fits: the versions are named, exit 3."""
    pins = toolchain()
    odd = Toolchain(
        name=pins.name,
        summary=pins.summary,
        python=("2.6",),
        steps=pins.steps,
        lock=(),
        imports=pins.imports,
        tried="",
        notes="",
    )

    with pytest.raises(Unsupported) as failure:
        find_python(odd, {"PATH": os.environ["PATH"]})

    assert failure.value.code == "toolchain.python"
    assert "Python 2.6" in failure.value.message


def test_plan_has_the_same_versions_before_and_after(settings: Settings) -> None:
    """Keys come from the pins; what is missing is a blocker with the command."""
    before = pinned_toolchain("llmcompressor", settings)

    pins = load_toolchains()["llmcompressor"]
    folder = folder_of(pins, settings)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    marker = {
        "schema": "lmi-build/toolchain/v1",
        "python": "3.11",
        "versions": {**pins.pins, "torch": f"{pins.pins['torch']}+cpu"},
        "num_bytes": 1,
    }
    (folder / "toolchain.json").write_text(json.dumps(marker))
    after = pinned_toolchain("llmcompressor", settings)
    marker["versions"] = {**pins.pins, "torch": "1.0"}
    (folder / "toolchain.json").write_text(json.dumps(marker))
    moved = pinned_toolchain("llmcompressor", settings)

    assert before.blocker is not None
    assert before.blocker.hint == "run `lmi-build toolchain install llmcompressor`"
    assert after.blocker is None
    assert dict(before.versions) == dict(after.versions) == dict(moved.versions)
    assert before.versions["llmcompressor"] == pins.pins["llmcompressor"]
    assert moved.blocker is not None
    assert "torch 1.0" in moved.blocker.message


def test_shipped_toolchains_are_whole() -> None:
    """Every pin is exact, PyTorch comes first, and no lock contradicts a pin."""
    for name, each in load_toolchains().items():
        pinned = {key.lower().replace("_", "-") for key in each.pins}
        locked = {row.split("==")[0].lower().replace("_", "-") for row in each.lock}
        assert each.steps[0].packages[0].startswith("torch=="), name
        assert pinned & locked == set(), name
        assert each.tried, name
        assert wrong_versions(each, each.pins) == {}
        assert all("//" not in row for row in each.lock)


def test_digest_names_the_pins() -> None:
    """Any pin, lock or step order gives another folder and another key."""
    digests = {
        toolchain("a==1", "b==1").digest,
        toolchain("a==1", "b==2").digest,
        toolchain("b==1", "a==1").digest,
        toolchain("a==1", "b==1", lock=("c==1",)).digest,
    }

    assert len(digests) == 4


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[sample", "TOMLDecodeError"),
        ('[sample]\nsummary = "x"\n', "steps"),
        (
            '[sample]\nsummary="x"\npython=["3"]\nsteps=[{packages=["a>=1"]}]\n',
            "name==version",
        ),
    ],
)
def test_own_file_that_is_wrong(tmp_path: Path, text: str, word: str) -> None:
    """The user's own list is refused with its name and what is wrong, exit 2."""
    (tmp_path / "own.toml").write_text(text)
    desk = Desk(tmp_path, {"LMI_BUILD_TOOLCHAINS": str(tmp_path / "own.toml")})

    done = desk.run("toolchain", "list")

    assert done.status == 2
    assert "toolchain.file" in done.err
    assert word in done.err


def test_commands(shelf: Path, tmp_path: Path) -> None:
    """The group from a shell; offline, no index is asked, only `find-links`."""
    (tmp_path / "own.toml").write_text(
        f'[sample]\nsummary = "a sample"\npython = ["{HERE}"]\n'
        'steps = [{ packages = ["squash==1.0"] }]\nimports = ["squash"]\n'
    )
    indexed = environ(shelf) | {"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    del indexed["PIP_NO_INDEX"]
    desk = Desk(
        tmp_path, {**indexed, "LMI_BUILD_TOOLCHAINS": str(tmp_path / "own.toml")}
    )

    missing = desk.run("toolchain", "doctor", "sample")
    made = desk.run("toolchain", "install", "sample", "--offline")
    again = desk.run("toolchain", "install", "sample")
    tried = desk.run("toolchain", "doctor", "sample", "--output", "json")
    listed = desk.run("toolchain", "list")
    kept = desk.run("cache", "prune", "--all")
    still = desk.run("toolchain", "list", "--output", "json").json
    removed = desk.run("toolchain", "remove", "sample", "--output", "json")
    unknown = desk.run("toolchain", "install", "simple")

    assert missing.status == 3
    assert (made.status, again.status) == (0, 0), made.err
    assert "already installed" in again.err
    assert tried.json[0]["status"] == "installed"
    assert "squash 1.0" in listed.out
    assert kept.status == 0
    assert {row["name"]: row["status"] for row in still}["sample"] == "installed"
    assert removed.json["freed_bytes"] > 0
    again = desk.run("toolchain", "remove", "sample")
    assert again.status == 0
    assert "sample is not installed" in again.err
    assert unknown.status == 3
    assert "did you mean `sample`?" in unknown.err
