"""A model from a hub, as a user fetches it: by commands, from a server of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from desk import Desk
from hub_server import COMMIT, TOKEN, Hub, Rule, serve_hub
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: acme/tiny, revision: main}
bounds: {max_input_len: 16, max_output_len: 4}
compile: {backend: onnxruntime}
"""
FETCH = ("build", "recipe.yaml", "--until", "fetch", "--output", "json")


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
def desk(tmp_path: Path, hub: Hub) -> Desk:
    """A desk that knows the hub and has a token."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return Desk(tmp_path, {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN})


def test_fetched_once_then_found_offline(desk: Desk, hub: Hub) -> None:
    """The second build is cached, needs no network, and names the same commit."""
    first = desk.run(*FETCH)
    asked = len(hub.requests)
    offline = desk.run(*FETCH, "--offline")

    assert (first.status, offline.status) == (0, 0), first.err + offline.err
    assert first.json["stages"][0]["key"] == offline.json["stages"][0]["key"]
    assert offline.json["num_built"] == 0
    assert len(hub.requests) == asked


def test_drops_and_busy_answers_are_outlasted(desk: Desk, hub: Hub) -> None:
    """A connection that breaks off and a 503 cost time, not the build."""
    hub.rules.append(Rule("model.safetensors", "drop", times=2, after=50_000))
    hub.rules.append(Rule("tokenizer.json", "503", times=1))

    done = desk.run(*FETCH)

    assert done.status == 0, done.err


def test_commit_in_the_recipe_gives_the_same_key(desk: Desk) -> None:
    """A branch is resolved to its commit before it enters a key."""
    branch = desk.run(*FETCH)
    commit = desk.run(*FETCH, "--set", f"model.revision={COMMIT}")

    assert commit.status == 0, commit.err
    assert commit.json["num_built"] == 0
    assert commit.json["stages"][0]["key"] == branch.json["stages"][0]["key"]


@pytest.mark.parametrize(
    ("kind", "code"), [("gated", "source.gated"), ("unauthorized", "source.")]
)
def test_refused_repository_is_explained(
    desk: Desk, hub: Hub, kind: str, code: str
) -> None:
    """A gate ends with status 6 and what to do about it, not with a traceback."""
    hub.rules.append(Rule("", kind, times=1000))

    done = desk.run("plan", "recipe.yaml")

    assert done.status == 6
    assert f"error[{code}" in done.err
    assert "hint: " in done.err


def test_missing_revision_is_told_at_its_key(desk: Desk) -> None:
    """A branch that is not there is a fault of the recipe, with its place."""
    done = desk.run("plan", "recipe.yaml", "--set", "model.revision=nope")

    assert done.status == 2
    assert "error[source.revision-missing]" in done.err
    assert "model.revision" in done.err


def test_token_stands_in_no_file_and_no_output(desk: Desk) -> None:
    """What opens the hub is written nowhere."""
    done = desk.run(*FETCH, "--debug")

    assert done.status == 0
    assert TOKEN not in done.out + done.err
    for path in desk.root.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
