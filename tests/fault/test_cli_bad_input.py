"""What a user sees when what was given is broken: by commands, on a tiny model."""

from __future__ import annotations

import json
import random
import shutil
import signal
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from desk import Desk
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize: {method: int8}
bounds: {max_input_len: 32, max_output_len: 4, max_batch_size: 1}
compile: {backend: onnxruntime}
verify: {prompts: ["hello"], max_new_tokens: 2, num_samples: 1, max_seq_len: 16}
"""
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model."""
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def desk(tmp_path: Path, original: Path) -> Desk:
    """A desk of one's own."""
    shutil.copytree(original, tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return Desk(tmp_path)


def _cut_header(model: Path) -> None:
    path = model / WEIGHTS
    path.write_bytes(path.read_bytes()[:100])


def _cut_body(model: Path) -> None:
    path = model / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _boast(model: Path) -> None:
    path = model / WEIGHTS
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def _pickle_only(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")


def _link_out(model: Path) -> None:
    (model / "README.md").symlink_to("/etc/passwd")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "header cut": (_cut_header, "checkpoint.truncated"),
    "body cut": (_cut_body, "checkpoint.truncated"),
    "endless header": (_boast, "checkpoint.header-length"),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "source.no-tokenizer"),
    "no config": (lambda m: (m / "config.json").unlink(), "source.no-config"),
    "config cut": (
        lambda m: (m / "config.json").write_text('{"a'),
        "source.bad-config",
    ),
    "tokenizer cut": (
        lambda m: (m / "tokenizer.json").write_text('{"a'),
        "source.bad-config",
    ),
    "generation_config cut": (
        lambda m: (m / "generation_config.json").write_text("[]"),
        "source.bad-config",
    ),
    "pickles": (_pickle_only, "source.pickle-only"),
    "link out": (_link_out, "source.link-outside"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_model_is_named_with_its_file(desk: Desk, case: str) -> None:
    """Every damage ends with status 1, a code, a hint and nothing in the store."""
    damage, code = BROKEN[case]
    damage(desk.model)

    done = desk.run("build", "recipe.yaml")

    assert done.status == 1, done.err
    assert f"error[{code}]" in done.err
    assert "hint: " in done.err
    assert desk.run("cache", "verify").status == 0
    assert not (desk.root / "artifacts").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 128},
        {"vocab_size": 600},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"intermediate_size": 64},
    ],
    ids=str,
)
def test_config_of_another_model_is_seen_before_work(
    desk: Desk, change: dict[str, int]
) -> None:
    """Sizes that the tensors do not have end `plan`, with both numbers."""
    desk.change_config(**change)

    done = desk.run("plan", "recipe.yaml")

    assert done.status == 1
    assert "error[source.config-mismatch]" in done.err
    assert str(next(iter(change.values()))) in done.err


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": -1}, {"num_attention_heads": 0}, {"architectures": "Llama"}],
    ids=str,
)
def test_config_that_makes_no_sense_names_the_key(
    desk: Desk, change: dict[str, Any]
) -> None:
    """A size that is no positive number, a list that is none: the key is named."""
    desk.change_config(**change)

    done = desk.run("plan", "recipe.yaml")

    assert done.status == 1
    assert "error[source.bad-config]" in done.err
    assert next(iter(change)) in done.err


def test_unknown_architecture_is_unsupported(desk: Desk) -> None:
    """Status 3 when nothing that is installed can do what the recipe soundly asks."""
    desk.change_config(architectures=["MambaForCausalLM"])

    gptq = ("--set", "quantize.method=gptq", "--set", "quantize.group_size=32")
    done = desk.run("plan", "recipe.yaml", *gptq)

    assert done.status == 3
    assert "MambaForCausalLM" in done.err
    assert "recipe.yaml:3" in done.err


def test_output_that_cannot_be_written_names_its_own_option(desk: Desk) -> None:
    """A file where the plan or the folder should go: status 2 and the option to use."""
    (desk.root / "file").write_text("")

    done = desk.run("plan", "recipe.yaml", "--out", "file/plan.json")

    assert done.status == 2
    assert "error[out.unwritable]" in done.err
    assert "--out" in done.err
    assert "--cache-dir" not in done.err


def test_plan_of_a_stranger_cannot_leave_its_folder(desk: Desk) -> None:
    """Names in a saved plan are held to what a recipe may say; status 2."""
    desk.run("plan", "recipe.yaml", "--out", "plan.json")
    path = desk.root / "plan.json"
    document = json.loads(path.read_bytes())
    document["artifacts"][0]["name"] = "../../evil"
    path.write_text(json.dumps(document))

    done = desk.run("build", "--plan", "plan.json")

    assert done.status == 2
    assert "error[plan.unreadable]" in done.err
    assert "../../evil" in done.err


def test_store_that_cannot_be_made_is_told_once(desk: Desk) -> None:
    """A store below a file: one line of warning, one error with the path."""
    (desk.root / "file").write_text("")

    done = desk.run("build", "recipe.yaml", "--cache-dir", "file/store")

    assert done.status == 1
    assert "file/store" in done.err
    assert done.err.count("not kept") <= 1


def clean_digest(desk: Desk) -> str:
    """The manifest of the same build where nothing was ever killed."""
    done = desk.run(
        "--cache-dir", "clean", "build", "recipe.yaml", "--out", "c", "--output", "json"
    )
    return str(json.loads(done.out)["artifacts"][0]["manifest_digest"])


def test_a_damaged_store_is_one_document(desk: Desk) -> None:
    """Programs read the faults and the status; people read the error."""
    assert desk.run("build", "recipe.yaml", "--until", "fetch").status == 0
    blob = max(
        (desk.root / "store" / "blobs").rglob("*"), key=lambda x: x.stat().st_size
    )
    blob.chmod(0o600)
    blob.write_bytes(b"damaged")

    told = desk.run("cache", "verify")
    found = desk.run("cache", "verify", "--output", "json")

    assert (told.status, found.status) == (1, 1)
    assert "error[store.corrupt]" in told.err
    assert [row["path"].endswith(blob.name) for row in found.json] == [True]
    assert desk.run("cache", "verify", "--repair", "--output", "json").status == 0
    assert desk.run("cache", "verify", "--output", "json").json == []


def test_killed_builds_go_on_to_the_same_artifact(desk: Desk) -> None:
    """After kills at random moments the store is clean and the result the same."""
    moments = random.Random(5)  # noqa: S311 - moments, no secrets
    for _ in range(5):
        process = subprocess.Popen(
            desk.arguments("build", "recipe.yaml"),
            cwd=desk.root,
            env=desk.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(moments.uniform(0.2, 5.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert desk.run("cache", "verify").status == 0

    last = desk.run("build", "recipe.yaml", "--output", "json")
    whole = desk.run("build", "recipe.yaml", "--out", "again", "--output", "json")

    assert last.status == 0, last.err
    built, kept = (
        json.loads(done.out)["artifacts"][0]["manifest_digest"]
        for done in (last, whole)
    )
    assert built == kept == clean_digest(desk)
    assert [path.name for path in (desk.root / "store" / "scratch").iterdir()] == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_stopped_build_says_so(desk: Desk, name: str) -> None:
    """A signal ends a build with status 130, as data where data was asked for."""
    process = subprocess.Popen(
        desk.arguments("build", "recipe.yaml", "--output", "json"),
        cwd=desk.root,
        env=desk.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "started" in process.stderr.readline()

    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "build.interrupted"


def test_missing_calibration_file_is_told_with_its_place(desk: Desk) -> None:
    """Status 2 at the key that names the file, before any work."""
    gptq = ("quantize.method=gptq", "quantize.group_size=32")
    sets = [*gptq, "quantize.calibration.dataset=./nowhere.txt"]

    done = desk.run("plan", "recipe.yaml", *(x for s in sets for x in ("--set", s)))

    assert done.status == 2
    assert "error[calibration.unreadable]" in done.err
    assert "quantize.calibration.dataset" in done.err
