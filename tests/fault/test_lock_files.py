"""Locks on the command line: what moved, what was edited, what is not a lock."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hub_server import COMMIT, Hub, serve_hub
from lmi_build.cli.main import run
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: acme/tiny, revision: main}
bounds: {max_input_len: 16, max_output_len: 4}
compile: {backend: onnxruntime}
"""
NEW_COMMIT = "f" * 40
Command = "Callable[..., tuple[int, str, str]]"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole model, as a repository holds it."""
    folder = make_tiny_model(tmp_path_factory.mktemp("model"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub with one repository."""
    with serve_hub({"acme/tiny": files}) as server:
        yield server


@pytest.fixture
def lmi(
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in a folder with a recipe and its lock."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("LMI_BUILD_CACHE", str(tmp_path / "store"))
    for name in ("LMI_BUILD_THREADS", "LMI_BUILD_STORE"):
        monkeypatch.delenv(name, raising=False)
    Path("recipe.yaml").write_text(RECIPE)

    def command(*arguments: str) -> tuple[int, str, str]:
        status = run([*arguments, "--no-color"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    assert command("lock", "recipe.yaml")[0] == 0
    return command


def move_branch(hub: Hub, commit: str = NEW_COMMIT) -> None:
    """Let `main` be another commit; the old one stays."""
    hub.branches |= {"old": COMMIT, "main": commit}


def fetch_key(out: str) -> str:
    """Key of the model in a plan's text."""
    match = re.search(r"tiny/fetch +\w+ +([0-9a-f]{12})", out)
    assert match
    return match[1]


def changes(out: str) -> list[dict[str, Any]]:
    """What `lock --output json` says of one recipe."""
    (document,) = json.loads(out)["locks"]
    found: list[dict[str, Any]] = document["changes"]
    return found


def test_a_branch_that_moved(lmi: Any, hub: Hub) -> None:
    """A plan stays at the locked commit; `--locked` names both; `--upgrade` moves."""
    before = fetch_key(lmi("plan", "recipe.yaml")[1])
    move_branch(hub)
    hub.repos["acme/tiny"]["generation_config.json"] += b" "

    followed = lmi("plan", "recipe.yaml")
    locked = lmi("plan", "recipe.yaml", "--locked")
    moved = lmi("lock", "recipe.yaml", "--upgrade", "model", "--output", "json")

    assert (followed[0], fetch_key(followed[1])) == (0, before)
    assert locked[0] == 2
    assert f"acme/tiny@main commit: {COMMIT} -> {NEW_COMMIT}" in locked[2]
    assert "file generation_config.json: git-sha1:" in locked[2]
    assert locked[2].count("error[lock.stale]") == 2
    assert "recipe.yaml:3:38  model.revision" in locked[2]
    assert "lmi-build lock --upgrade model recipe.yaml" in locked[2]
    assert [row["field"] for row in changes(moved[1])] == [
        "commit",
        "file generation_config.json",
    ]
    assert lmi("plan", "recipe.yaml", "--locked")[0] == 0


def test_frozen_asks_the_hub_for_nothing(lmi: Any, hub: Hub) -> None:
    """What was looked up when it was locked is enough for `--frozen`."""
    asked = len(hub.requests)

    status, _, err = lmi("plan", "recipe.yaml", "--frozen")

    assert status == 0, err
    assert len(hub.requests) == asked


def test_frozen_never_asks_for_the_branch(lmi: Any, hub: Hub, tmp_path: Path) -> None:
    """On a machine that knows nothing, the locked commit is asked for, not `main`."""
    del hub.requests[:]

    status, _, err = lmi(
        "plan", "recipe.yaml", "--frozen", "--cache-dir", str(tmp_path / "other")
    )

    assert status == 0, err
    assert hub.requests
    assert not [request for request in hub.requests if "main" in request]


def test_a_file_that_changed_under_the_commit(
    lmi: Any, hub: Hub, tmp_path: Path
) -> None:
    """Other content under a locked commit is refused, with its place in the lock."""
    hub.repos["acme/tiny"]["generation_config.json"] += b" "

    status, _, err = lmi("plan", "recipe.yaml", "--cache-dir", str(tmp_path / "other"))

    assert status == 2
    assert "error[lock.changed]: `generation_config.json` of acme/tiny@main" in err
    assert re.search(r"--> recipe\.lock:\d+:3 {2}model acme/tiny@main", err)
    assert "lmi-build lock --upgrade model recipe.yaml" in err


def test_a_commit_that_is_gone(lmi: Any, hub: Hub, tmp_path: Path) -> None:
    """A locked commit that the hub lost is told as such."""
    hub.branches["main"] = NEW_COMMIT

    status, _, err = lmi("plan", "recipe.yaml", "--cache-dir", str(tmp_path / "other"))

    assert status == 2
    assert COMMIT in err
    assert "the lock names this commit of acme/tiny@main" in err


EDITS = {
    "digest": ('digest = "sha256:', 'digest = "sha256:00', "lock.unreadable"),
    "size": ("size = ", "size = 1", "lock.changed"),
    "commit": ('commit = "0', 'commit = "x', "lock.unreadable"),
    "schema": ("lock/v1", "lock/v2", "lock.schema"),
    "recipe": ('recipe = "tiny"', 'recipe = "tinx"', "lock.other-recipe"),
    "unknown": ("threads", "thread", ""),
    "key": ("lmi-build =", "lmi-builds =", "lock.unreadable"),
    "conflict": ("[tools]", "<<<<<<< HEAD\n[tools]\n=======", "lock.conflict"),
    "quotes": ("[tools]", '[tools\n"', "lock.unreadable"),
    "table": ("[[model]]", "[model]", "lock.unreadable"),
    "empty tool": ('torch = "', 'torch = "" # "', "lock.unreadable"),
    "tail": ("# end of the lock", "", "lock.unreadable"),
}


@pytest.mark.parametrize("name", [name for name, row in EDITS.items() if row[2]])
def test_an_edited_lock_is_refused_with_its_place(lmi: Any, name: str) -> None:
    """Whatever is wrong in a lock: its code, its line, a way out, and exit status 2."""
    old, new, code = EDITS[name]
    text = Path("recipe.lock").read_text()
    assert old in text
    Path("recipe.lock").write_text(text.replace(old, new, 1))

    status, _, err = lmi("plan", "recipe.yaml")

    assert status == 2
    assert err.startswith(f"error[{code}]: ")
    assert re.search(r"--> recipe\.(lock|yaml):\d+:\d+", err)
    assert "hint: " in err
    assert "lmi-build lock --upgrade" in err


def test_any_broken_lock_can_be_written_anew(lmi: Any) -> None:
    """`--upgrade all` needs no lock that can be read."""
    good = Path("recipe.lock").read_text()
    for broken in ("", "<<<<<<< HEAD\n", good[:200], "\0", "[" * 5000):
        Path("recipe.lock").write_text(broken)
        assert lmi("lock", "recipe.yaml")[0] == 2
        assert Path("recipe.lock").read_text() == broken

        assert lmi("lock", "recipe.yaml", "--upgrade", "all")[0] == 0
        assert Path("recipe.lock").read_text() == good


@pytest.mark.parametrize("mode", ["--locked", "--frozen"])
@pytest.mark.parametrize("command", ["plan", "build"])
def test_no_lock(lmi: Any, mode: str, command: str) -> None:
    """A lock that was asked for and is not there ends the command before any work."""
    Path("recipe.lock").unlink()

    status, _, err = lmi(command, "recipe.yaml", mode)

    assert status == 2
    assert err.startswith("error[lock.missing]: `recipe.yaml` has no lock")
    assert "hint: run `lmi-build lock recipe.yaml`" in err
    assert not Path("store/actions").exists()


def test_both_wishes_are_refused(lmi: Any) -> None:
    """One excludes the other, and neither means anything to a saved plan."""
    assert lmi("plan", "recipe.yaml", "--locked", "--frozen")[0] == 2
    assert lmi("plan", "recipe.yaml", "--out", "plan.json")[0] == 0

    status, _, err = lmi("build", "--plan", "plan.json", "--locked")

    assert status == 2
    assert "lmi-build plan RECIPE --locked --out FILE" in err


def test_a_recipe_that_moved_on(lmi: Any, hub: Hub, files: dict[str, bytes]) -> None:
    """Another model is looked up and said; `--frozen` refuses, `--locked` names it."""
    hub.repos["acme/other"] = dict(files)
    Path("recipe.yaml").write_text(RECIPE.replace("acme/tiny", "acme/other"))

    followed = lmi("plan", "recipe.yaml")
    frozen = lmi("plan", "recipe.yaml", "--frozen")
    locked = lmi("plan", "recipe.yaml", "--locked")

    assert followed[0] == 0
    assert "note[lock.stale]" in followed[1]
    assert (frozen[0], locked[0]) == (2, 2)
    assert "error[lock.no-entry]: the lock has no model `acme/other`" in frozen[2]
    assert "model acme/other@main is not in it" in locked[2]
    assert "model acme/tiny@main is gone" in locked[2]


def test_check_writes_nothing(lmi: Any, hub: Hub) -> None:
    """`--check` says what `lock` would write, and exits with 10."""
    before = Path("recipe.lock").read_bytes()
    assert lmi("lock", "--check", "recipe.yaml")[0] == 0
    move_branch(hub)

    kept = lmi("lock", "--check", "recipe.yaml")
    moved = lmi("lock", "--check", "--upgrade", "model", "recipe.yaml")

    assert kept[0] == 0
    assert moved[0] == 10
    assert moved[1] == f"~ model acme/tiny@main commit  {COMMIT} -> {NEW_COMMIT}\n"
    assert Path("recipe.lock").read_bytes() == before


def result_file(tools: dict[str, str], **fields: Any) -> str:
    """A file with what a job left."""
    document = {
        "schema": "lmi-build/job-result/v1",
        "name": "tiny-job",
        "host": "algo-1",
        "ok": False,
        "exit_code": 3,
        "stages": [],
        "hints": [],
        "artifacts": [],
        "tools": tools,
        **fields,
    }
    Path("result.json").write_text(json.dumps(document))
    return "result.json"


def test_tools_of_a_job(lmi: Any) -> None:
    """Versions come from a container; the plan has its keys and says it is not here."""
    file = result_file({"torch": "2.7.1", "onnxruntime": "1.22.0"})

    status, out, err = lmi("lock", "recipe.yaml", "--tools-from", f"compile={file}")
    plan = lmi("plan", "recipe.yaml")

    assert status == 0, err
    assert "+ tools jobs  tiny-job" in out
    text = Path("recipe.lock").read_text()
    assert 'jobs = ["tiny-job"]' in text
    assert '[tools-of.compile]\nonnxruntime = "1.22.0"' in text
    assert "locked with onnxruntime 1.22.0 (here " in plan[1]
    assert lmi("plan", "recipe.yaml", "--locked")[0] == 0


@pytest.mark.parametrize(
    "text", ["", "{}", '{"schema": "lmi-build/job-result/v1"}', "[1]", "\0"]
)
def test_a_file_that_is_no_result(lmi: Any, text: str) -> None:
    """What is not a job's result changes no lock."""
    before = Path("recipe.lock").read_bytes()
    Path("result.json").write_text(text)

    status, _, err = lmi("lock", "recipe.yaml", "--tools-from", "result.json")

    assert status == 2
    assert "error[lock.tools]" in err
    assert Path("recipe.lock").read_bytes() == before


def test_a_job_without_tools_or_store(lmi: Any) -> None:
    """A result without versions, and a job without a store to find it in, are told."""
    empty = lmi("lock", "recipe.yaml", "--tools-from", result_file({}))
    nowhere = lmi("lock", "recipe.yaml", "--tools-from", "tiny-job")

    assert (empty[0], nowhere[0]) == (2, 2)
    assert "does not say which tools" in empty[2]
    assert "--store s3://bucket/prefix" in nowhere[2]


def test_a_store_that_the_recipe_names(lmi: Any) -> None:
    """Without `--store`, a job is looked for where the recipe's jobs share results."""
    Path("recipe.yaml").write_text(RECIPE + "job: {store: s3://team-store/lmi}\n")

    status, _, err = lmi("lock", "recipe.yaml", "--tools-from", "a-job", "--offline")

    assert status == 6
    assert "s3://team-store/lmi" in err


@pytest.mark.parametrize("command", ["lock", "plan"])
def test_a_lock_that_is_a_folder(lmi: Any, command: str) -> None:
    """What cannot be read as a lock is told by its name, and stays."""
    Path("recipe.lock").unlink()
    Path("recipe.lock").mkdir()

    status, _, err = lmi(command, "recipe.yaml")

    assert status == 2
    assert "--> recipe.lock" in err
    assert Path("recipe.lock").is_dir()
