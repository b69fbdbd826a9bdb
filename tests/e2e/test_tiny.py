"""The whole way of a tiny random model, as a user would go it: by commands."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from desk import Desk
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize:
  method: gptq
  group_size: 32
  calibration: {num_samples: 8, max_seq_len: 32}
bounds: {max_input_len: 32, max_output_len: 8, max_batch_size: 2}
compile: {backend: onnxruntime}
verify: {prompts: ["hello"], max_new_tokens: 4, num_samples: 2, max_seq_len: 32}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk on which the recipe was built once."""
    root = tmp_path_factory.mktemp("desk")
    make_tiny_model(root / "model")
    (root / "recipe.yaml").write_text(RECIPE)
    fresh = Desk(root)
    done = fresh.run("build", "recipe.yaml", "--output", "json")
    assert done.status == 0, done.err
    assert [row["cached"] for row in done.json["stages"]] == [False] * 5
    return fresh


def test_second_build_is_cached_and_gives_the_same_artifact(desk: Desk) -> None:
    """Building again runs no worker and names the same manifest."""
    before = (desk.tree / "manifest.json").read_bytes()

    again = desk.run("build", "recipe.yaml", "--output", "json")

    assert again.status == 0, again.err
    assert again.json["num_built"] == 0
    assert (desk.tree / "manifest.json").read_bytes() == before


def test_cached_build_imports_no_toolchain(desk: Desk) -> None:
    """Finding everything takes neither a framework nor a cloud library."""
    code = (
        "import json, sys\n"
        "from lmi_build.cli.main import run\n"
        "status = run(['-q', 'build', 'recipe.yaml', '--cache-dir', 'store'])\n"
        "names = sorted({name.partition('.')[0] for name in sys.modules})\n"
        "print(json.dumps([status, names]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=desk.root,
        env=desk.environment,
        capture_output=True,
        text=True,
        check=True,
    )

    status, modules = json.loads(done.stdout.splitlines()[-1])
    heavy = {"torch", "transformers", "numpy", "onnxruntime", "boto3", "tokenizers"}
    assert status == 0
    assert heavy & set(modules) == set()


def test_build_elsewhere_gives_the_same_artifact(desk: Desk) -> None:
    """Another store and another folder make the same bytes: same manifest digest."""
    other = Desk(desk.root / "elsewhere")
    other.root.mkdir()
    recipe = other.root / "recipe.yaml"
    recipe.write_text(RECIPE.replace("./model", "../model"))

    done = other.run("build", "recipe.yaml", "--output", "json")

    assert done.status == 0, done.err
    assert done.json["artifacts"][0]["manifest_digest"] == manifest_digest(desk)


def manifest_digest(desk: Desk) -> str:
    """The artifact's identity, as `inspect` and `verify` see it."""
    return str(
        desk.run("verify", str(desk.tree), "--output", "json").json["manifest_digest"]
    )


def test_saved_plan_builds_the_same(desk: Desk) -> None:
    """`build --plan` finds everything that the plan names."""
    saved = desk.run("plan", "recipe.yaml", "--out", "plan.json", "--exit-code")
    built = desk.run("build", "--plan", "plan.json", "--output", "json")

    assert (saved.status, built.status) == (0, 0), built.err
    assert built.json["num_built"] == 0


def test_plan_that_moved_is_refused(desk: Desk) -> None:
    """A plan made with another version of a tool ends with both versions named."""
    desk.run("plan", "recipe.yaml", "--out", "moved.json")
    path = desk.root / "moved.json"
    path.write_text(path.read_text().replace('"torch": "2', '"torch": "9'))

    done = desk.run("build", "--plan", "moved.json")

    assert done.status == 2
    assert "error[plan.unreadable]" in done.err


def test_plan_says_which_field_makes_a_stage_anew(desk: Desk) -> None:
    """A longer bound keeps fetch and quantize and names itself."""
    change = ("--set", "bounds.max_output_len=7")

    plan = desk.run("plan", "recipe.yaml", "--exit-code", "--output", "json", *change)
    why = desk.run("why", "recipe.yaml", "compile", *change)

    status = {row["kind"]: row["status"] for row in plan.json["stages"]}
    assert plan.status == 10
    assert status == {
        "fetch": "cached",
        "quantize": "cached",
        "compile": "rebuild",
        "package": "rebuild",
        "verify": "rebuild",
    }
    assert "params.max_seq_len   40   39" in why.out


def test_publish_fetch_verify_inspect_a_folder(desk: Desk) -> None:
    """What is published to a folder comes back byte for byte."""
    published = desk.run("publish", str(desk.tree), "shelf", "--output", "json")
    again = desk.run("publish", str(desk.tree), "shelf", "--output", "json")
    fetched = desk.run("fetch", "shelf/tiny", "back", "--output", "json")
    checked = desk.run("verify", "back")
    told = desk.run("inspect", "shelf/tiny")

    assert [published.status, again.status, fetched.status] == [0, 0, 0], fetched.err
    assert again.json["uploaded_bytes"] == 0
    assert checked.status == 0, checked.err
    assert told.status == 0
    assert "int4 groups of 32" in told.out
    for path in desk.tree.rglob("*"):
        if path.is_file():
            copy = desk.root / "back" / path.relative_to(desk.tree)
            assert copy.read_bytes() == path.read_bytes()


def test_damaged_artifact_is_refused(desk: Desk) -> None:
    """One flipped bit ends `verify` and `publish` with status 1 and the file's name."""
    damaged = desk.root / "damaged"
    desk.run("publish", str(desk.tree), "shelf2")
    desk.run("fetch", "shelf2/tiny", "damaged")
    target = damaged / "engine" / "model.onnx.data"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.chmod(0o644)
    target.write_bytes(data)

    checked = desk.run("verify", "damaged")
    sent = desk.run("publish", "damaged", "shelf3")

    assert (checked.status, sent.status) == (1, 1)
    assert "engine/model.onnx.data" in checked.err
    assert not list((desk.root / "shelf3").rglob("manifest.json"))


def test_gate_that_is_missed_fails_with_its_number(desk: Desk) -> None:
    """Status 5, the gate, what was measured, and nothing written."""
    done = desk.run(
        "build",
        "recipe.yaml",
        "--out",
        "gated",
        "--set",
        "verify.gates.max_mean_kl=1e-12",
    )

    assert done.status == 5, done.err
    assert "max_mean_kl" in done.err
    assert not (desk.root / "gated" / "tiny").exists()


def test_foreign_output_folder_is_left_alone(desk: Desk) -> None:
    """A folder with somebody's files is never replaced."""
    mine = desk.root / "mine" / "tiny"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")

    done = desk.run("build", "recipe.yaml", "--out", "mine")

    assert done.status == 2
    assert "out.foreign-folder" in done.err
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_events_are_a_stream_of_json(desk: Desk) -> None:
    """With `--output jsonl` every line of standard output is an event."""
    done = desk.run("build", "recipe.yaml", "--output", "jsonl")

    events = [json.loads(line)["event"] for line in done.out.splitlines()]
    assert events == ["plan-ready", *["stage-cached"] * 5, "build-finished"]


def test_errors_are_data_too(desk: Desk) -> None:
    """With `--output json` an error is a document with its place."""
    done = desk.run(
        "plan", "recipe.yaml", "--output", "json", "--set", "quantize.bit=4"
    )

    problem = done.json["error"]["problems"][0]
    assert done.status == 2
    assert problem["code"] == "recipe.unknown-key"
    assert (problem["file"], problem["line"]) == ("--set", 1)


def test_cache_commands(desk: Desk) -> None:
    """The store lists, verifies and prunes itself."""
    listed = desk.run("cache", "ls", "--output", "json")
    checked = desk.run("cache", "verify")
    pruned = desk.run("cache", "prune", "--all", "--dry-run", "--output", "json")

    assert {row["stage"] for row in listed.json} == {
        "fetch",
        "quantize",
        "compile",
        "package",
        "verify",
    }
    assert checked.status == 0, checked.err
    assert len(pruned.json["keys"]) == len(listed.json)
    assert desk.run("cache", "ls", "--output", "json").json == listed.json


@contextmanager
def serving(desk: Desk) -> Iterator[str]:
    """The artifact behind HTTP, by the `serve` command."""
    process = subprocess.Popen(
        desk.arguments("serve", str(desk.tree), "--port", "0"),
        env=desk.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.stdout.close()
        assert process.wait(60) == 0


def post(url: str, document: Any) -> tuple[int, Any]:
    """Status and JSON of a POST."""
    request = urllib.request.Request(  # noqa: S310 - our own server
        url,
        data=json.dumps(document).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_serve_answers_and_enforces_the_bounds(desk: Desk) -> None:
    """A prompt is answered; a bound that is passed is named in a 4xx answer."""
    with serving(desk) as url:
        status, answer = post(f"{url}/invocations", {"inputs": "hello"})
        long_status, refusal = post(f"{url}/invocations", {"inputs": "hello " * 99})
        many = {"inputs": "hello", "parameters": {"max_new_tokens": 9}}
        many_status, too_many = post(f"{url}/invocations", many)

    assert status == 200
    assert "generated_text" in answer
    assert 400 <= long_status < 500
    assert "32" in json.dumps(refusal)
    assert 400 <= many_status < 500
    assert "8" in json.dumps(too_many)


def test_a_log_is_held_against_the_built_artifact(desk: Desk) -> None:
    """Bounds come from its manifest; what they reject decides the status."""
    row = '{"input_tokens": %d, "output_tokens": %d}\n'
    (desk.root / "same.jsonl").write_text(row % (32, 8) * 99)
    (desk.root / "longer.jsonl").write_text(row % (32, 8) * 99 + row % (33, 9))

    same = desk.run("bounds", "check", "same.jsonl", str(desk.tree), "--output", "json")
    longer = desk.run(
        "bounds", "check", "longer.jsonl", str(desk.tree), "--output", "json"
    )

    assert (same.status, longer.status) == (0, 11), (same.err, longer.err)
    assert same.json["within"]
    (built,) = longer.json["built"]
    assert (built["max_input_len"], built["max_output_len"]) == (32, 8)
    assert (built["over_input"], built["over_output"], built["rejected"]) == (1, 1, 1)
    assert built["now"]["max_input_len"] == 33
