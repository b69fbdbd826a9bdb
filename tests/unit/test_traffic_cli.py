"""`bounds` and `bounds check` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.cli.main import run

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
bounds:
  max_input_len: 32  # from last year
  max_output_len: 16
compile: {backend: onnxruntime}
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    rows = [(n % 100, n % 10) for n in range(1000)] + [(5000, 900)]
    path.write_text(
        "".join(f'{{"input_tokens": {i}, "output_tokens": {o}}}\n' for i, o in rows)
    )
    return path


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, Any]:
    status = run([*argv, "--output", "json"])
    return status, json.loads(capsys.readouterr().out)


def test_the_outlier_is_rejected_and_the_rest_served(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = answer(capsys, "bounds", str(log), "--concurrency", "4")

    assert status == 0
    assert found["requests"] == 1001
    assert found["chosen"] | {"target": 0} == {
        "target": 0,
        "capacity": 108,
        "max_input_len": 99,
        "max_output_len": 9,
        "rejected": 1,
        "rejected_share": 1 / 1001,
    }
    assert found["bounds"]["max_batch_size"] == 4
    assert [row["target"] for row in found["curve"]] == sorted(
        row["target"] for row in found["curve"]
    )


def test_text_has_the_bounds_as_a_recipe_has_them(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bounds", str(log), "--reject", "0"]) == 0
    text = capsys.readouterr().out

    assert "bounds:\n  max_input_len: 5000\n  max_output_len: 900" in text
    assert "--concurrency" in text


def test_written_bounds_hold_and_older_ones_drift(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    status, found = answer(capsys, "bounds", "check", str(log), str(recipe))
    assert status == 11
    assert found["within"] is False
    assert found["built"][0]["over_input"] == 671

    assert run(["bounds", str(log), "--write", str(recipe), "--concurrency", "2"]) == 0
    capsys.readouterr()
    written = recipe.read_text()
    assert "max_input_len: 99  # from last year" in written
    assert "max_batch_size: 2\n" in written

    status, found = answer(capsys, "bounds", "check", str(log), str(recipe))
    assert status == 0
    assert found["built"][0]["rejected"] == 1


def test_a_share_is_a_share(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for share in ("1", "-0.1", "many", "1/0"):
        assert run(["bounds", str(log), "--reject", share]) == 2
        assert "--reject" in capsys.readouterr().err


def test_nothing_heavy_is_imported(log: Path) -> None:
    """A log of JSON lines needs the standard library and click."""
    code = (
        "import sys\n"
        "from lmi_build.cli.main import run\n"
        f"assert run(['bounds', {str(log)!r}]) == 0\n"
        "heavy = {'numpy', 'pyarrow', 'boto3', 'botocore', 'tokenizers', 'torch',"
        " 'pydantic', 'ruamel', 'huggingface_hub'}\n"
        "sys.stderr.write(','.join(sorted(heavy & set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stderr == ""
