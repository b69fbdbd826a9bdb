"""Calibration data of a user's own, from a hub and from S3, by commands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from desk import Desk
from faulty_s3 import FaultyS3
from hub_server import TOKEN, Hub, Rule, serve_hub
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize:
  method: gptq
  group_size: 32
  calibration: {dataset: ./rows.jsonl, num_samples: 8, max_seq_len: 32}
bounds: {max_input_len: 32, max_output_len: 8}
compile: {backend: onnxruntime}
verify: {max_new_tokens: 4, num_samples: 2, max_seq_len: 32}
"""
QUANTIZE = ("build", "recipe.yaml", "--until", "quantize", "--output", "json")
ROWS = b"".join(
    json.dumps({"text": f"The store holds {i} names. " * 9}).encode() + b"\n"
    for i in range(60)
)
SECRET = "made-up-secret"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and a store that every desk here uses."""
    root = tmp_path_factory.mktemp("desk")
    make_tiny_model(root / "model")
    return root


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with one data set."""
    with serve_hub(
        {"datasets/acme/rows": {"train.jsonl": ROWS, "README.md": b"rows"}}
    ) as server:
        yield server


@pytest.fixture
def desk(shared: Path, hub: Hub) -> Desk:
    """The recipe beside the model; a token for the hub."""
    (shared / "recipe.yaml").write_text(RECIPE)
    (shared / "rows.jsonl").write_bytes(ROWS)
    return Desk(shared, {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN})


def data_set(name: str) -> tuple[str, str]:
    """The override that names another data set."""
    return ("--set", f"quantize.calibration.dataset={name}")


def rows_of(document: Any) -> dict[str, Any]:
    """Kind of stage to its row."""
    return {row["kind"]: row for row in document["stages"]}


def test_a_file_is_a_stage_of_its_own(desk: Desk) -> None:
    """The data is brought once, by content: another name for it costs nothing."""
    first = desk.run(*QUANTIZE)
    (desk.root / "other.jsonl").write_bytes(ROWS)
    again = desk.run(*QUANTIZE, *data_set("./other.jsonl"))

    assert first.status == 0, first.err
    assert list(rows_of(first.json)) == ["fetch", "calibration", "quantize"]
    assert rows_of(first.json)["calibration"]["out_bytes"] == len(ROWS)
    assert again.json["num_built"] == 0


def test_a_file_edited_between_plan_and_build_is_refused(desk: Desk) -> None:
    """A saved plan names content; the edit is told, and building anew takes it."""
    name = data_set("./edited.jsonl")
    (desk.root / "edited.jsonl").write_bytes(ROWS + b'{"text": "planned"}')
    planned = desk.run("plan", "recipe.yaml", *name, "--out", "plan.json")
    (desk.root / "edited.jsonl").write_bytes(ROWS)

    refused = desk.run("build", "--plan", "plan.json")
    anew = desk.run("plan", "recipe.yaml", *name, "--output", "json")

    assert planned.status == 0, planned.err
    assert refused.status == 1
    assert "error[calibration.changed]" in refused.err
    assert "edited.jsonl" in refused.err
    assert rows_of(anew.json)["calibration"]["estimate"]["disk_bytes"] == len(ROWS)
    assert rows_of(anew.json)["fetch"]["status"] == "cached"


def test_a_hub_data_set_from_plan_to_checkpoint(desk: Desk, hub: Hub) -> None:
    """Planned with what it will read, fetched once, then built without the network."""
    name = data_set("hub:acme/rows")
    planned = desk.run("plan", "recipe.yaml", *name)
    served = dict(hub.served)
    built = desk.run(*QUANTIZE, *name, "--debug")
    asked = len(hub.requests)
    offline = desk.run(*QUANTIZE, *name, "--offline")

    assert planned.status == 0, planned.err
    assert "note[calibration.files]: tiny/calibration: calibrates on `train.jsonl`" in (
        planned.out
    )
    assert served == {}
    assert built.status == 0, built.err
    assert "calibrates on `train.jsonl`" in built.err
    assert offline.json["num_built"] == 0
    assert len(hub.requests) == asked
    assert TOKEN not in built.out + built.err
    for path in (desk.root / "store").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_a_parquet_data_set_of_chats(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    """What most data sets on the hub are: shards of chats, through the template."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    said = [{"role": "user", "content": "What is the capital of France? " * 9}]
    table = pa.table({"messages": [said] * 60, "score": [0.5] * 60})
    parquet.write_table(table, tmp_path / "x.parquet")
    shard = (tmp_path / "x.parquet").read_bytes()
    hub.repos["datasets/acme/chats"] = {
        "data/train-00000-of-00001.parquet": shard,
        "data/test-00000-of-00001.parquet": b"never read",
    }
    chat = ("--set", "quantize.calibration.chat_template=true")

    done = desk.run(*QUANTIZE, *data_set("hub:acme/chats"), *chat)

    assert done.status == 0, done.err
    assert rows_of(done.json)["calibration"]["out_bytes"] == len(shard)
    assert "data/test-00000-of-00001.parquet" not in hub.served


def test_a_moved_branch_builds_anew_and_says_why(desk: Desk, hub: Hub) -> None:
    """New rows, new key; `why` names the file that changed."""
    name = data_set("hub:acme/rows@main/train.jsonl")
    desk.run(*QUANTIZE, *name)
    hub.repos["datasets/acme/rows"]["train.jsonl"] = ROWS[::-1]
    hub.branches["main"] = "e" * 40

    why = desk.run("why", "recipe.yaml", "calibration", *name, "--output", "json")

    assert why.status == 0, why.err
    assert why.json["status"] == "rebuild"
    assert "files" in why.json["changes"][0]["path"]


def test_a_gated_data_set_ends_with_status_6(desk: Desk, hub: Hub) -> None:
    """At plan time, with the page on which to accept the licence."""
    hub.rules.append(Rule("datasets/acme/rows", "gated", times=1000))

    done = desk.run("plan", "recipe.yaml", *data_set("hub:acme/rows@v2"))

    assert done.status == 6
    assert "error[source.gated]" in done.err
    assert f"{hub.url}/datasets/acme/rows" in done.err


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("hub:acme/rows/valid-*", "calibration.no-data-files"),
        ("hub:acme/rows@gone", "source.revision-missing"),
        ("./gone.csv", "calibration.unreadable"),
        ("hub:acme", "recipe.dataset"),
    ],
)
def test_faults_of_the_name_are_told_at_its_key(
    desk: Desk, name: str, code: str
) -> None:
    """Status 2, the key, and a way out."""
    done = desk.run("plan", "recipe.yaml", *data_set(name))

    assert done.status == 2, done.err
    assert f"error[{code}]" in done.err
    assert "quantize.calibration.dataset" in done.err
    assert "hint: " in done.err


def test_offline_and_unknown_is_told(desk: Desk) -> None:
    """Nothing is asked, and what to do is said."""
    name = data_set("hub:acme/unknown")

    done = desk.run("plan", "recipe.yaml", *name, "--offline")
    valid = desk.run("validate", "recipe.yaml", *name, "--output", "json")

    assert done.status == 6
    assert "error[source.offline]" in done.err
    assert valid.status == 0, valid.err
    assert valid.json["model_checked"] is False


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (b'{"label": 1, "picture": 2}\n', "calibration.row"),
        (b'{"text": null}\n{"text": NaN}\n', "calibration.empty"),
        (b'{"text": "short"}\n', "calibration.too-short"),
    ],
)
def test_bad_rows_fail_the_stage_and_keep_the_rest(
    desk: Desk, rows: bytes, code: str
) -> None:
    """The message names the user's file; what was fetched stays."""
    (desk.root / "bad.jsonl").write_bytes(rows)

    done = desk.run(
        "build", "recipe.yaml", "--until", "quantize", *data_set("./bad.jsonl")
    )
    plan = desk.run("plan", "recipe.yaml", *data_set("./bad.jsonl"), "--output", "json")

    assert done.status == 1
    assert f"error[{code}]" in done.err
    assert "hint: " in done.err
    assert "/in/" not in done.err
    assert rows_of(plan.json)["fetch"]["status"] == "cached"


def test_little_text_is_doubted_and_absurdly_little_refused(desk: Desk) -> None:
    """A warning in plan and build; below an eighth of a token a channel, status 2."""
    few = ("--set", "quantize.calibration.num_samples=3")
    fewer = ("--set", "quantize.calibration.num_samples=1")
    shorter = ("--set", "quantize.calibration.max_seq_len=8")

    doubted = desk.run("plan", "recipe.yaml", *few)
    refused = desk.run("plan", "recipe.yaml", *fewer, *shorter)

    assert doubted.status == 0, doubted.err
    assert "warning[calibration.few-tokens]" in doubted.out
    assert refused.status == 2
    assert "error[calibration.few-tokens]" in refused.err


def test_parquet_without_its_package_blocks_before_any_work(desk: Desk) -> None:
    """Where pyarrow is missing the plan says how to get it; where it is, it plans."""
    (desk.root / "rows.parquet").write_bytes(b"PAR1")

    plan = desk.run(
        "plan", "recipe.yaml", *data_set("./rows.parquet"), "--output", "json"
    )

    blocker = rows_of(plan.json)["quantize"]["blocker"]
    if blocker is not None:
        assert "pip install 'lmi-build[parquet]'" in blocker["hint"]
        done = desk.run("build", "recipe.yaml", *data_set("./rows.parquet"))
        assert done.status == 3
    else:
        done = desk.run("build", "recipe.yaml", *data_set("./rows.parquet"))
        assert done.status == 1
        assert "error[calibration.unreadable]" in done.err


def test_an_object_on_s3_from_plan_to_checkpoint(shared: Path) -> None:
    """Brought by the one stage that sees the keys; cached when nothing moved."""
    (shared / "recipe.yaml").write_text(RECIPE)
    with FaultyS3() as server:
        client = boto3.client(
            "s3",
            endpoint_url=server.url,
            aws_access_key_id="AKIAMADEUP",
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="cal")
        client.put_object(Bucket="cal", Key="a/rows.jsonl", Body=ROWS)
        client.close()
        desk = Desk(
            shared,
            {
                "AWS_ENDPOINT_URL_S3": server.url,
                "AWS_ACCESS_KEY_ID": "AKIAMADEUP",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": "us-east-1",
            },
        )
        name = data_set("s3://cal/a/rows.jsonl")
        built = desk.run(*QUANTIZE, *name)
        again = desk.run(*QUANTIZE, *name, "--offline")

    assert built.status == 0, built.err
    assert rows_of(built.json)["calibration"]["out_bytes"] == len(ROWS)
    assert again.status == 0, again.err
    assert again.json["num_built"] == 0
    assert SECRET not in built.out + built.err
