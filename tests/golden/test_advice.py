"""Worked questions: the whole answer, as people read it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lmi_build.cli.main import run

GOLDEN = Path(__file__).parent / "advice"
GUIDE = Path(__file__).parents[2] / "docs" / "concepts" / "advice.md"
QUESTIONS = {
    "llama-a10g-even": "--model llama --instance ml.g5.2xlarge --traffic even",
    "llama-a10g-uneven": "--model llama --instance ml.g5.2xlarge --traffic uneven",
    "t5": "--model t5",
    "qwen-inferentia": "--model qwen2 --instance ml.inf2.8xlarge",
    "llama-neuron-int8": "--model llama --device neuron --technique int8",
    "cpu-only": "--model llama --device cpu",
    "lora": "--model llama --features lora --concurrency 32",
    "gptq": "--model qwen2 --technique gptq --traffic even --goal throughput",
    "fp8-on-turing": "--model llama --technique fp8 --instance ml.g4dn.xlarge",
    "cost": "--model llama --goal cost --concurrency 16",
    "latency": "--model mistral --goal latency --traffic even",
    "components-and-chat": "--model gemma2 --features inference-components,chat",
    "t5-lora-maintained": "--model t5 --features lora --life maintained",
    "nobody": "--model bart --device neuron --features chat",
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers(
    name: str, *, update_golden: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer to a question is what it was, reasons and sources included."""
    assert run(["advise", *QUESTIONS[name].split(), "--verbose"]) == 0
    found = f"lmi-build advise {QUESTIONS[name]}\n\n{capsys.readouterr().out}"
    path = GOLDEN / f"{name}.txt"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(found, "utf-8")

    assert found == path.read_text("utf-8")


@pytest.mark.parametrize("name", QUESTIONS)
def test_json_says_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs get every row, with the same winner and a source for each reason."""
    assert run(["advise", *QUESTIONS[name].split(), "--output", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    kept = [row for row in document["rows"] if not row["removed"]]
    scores = [row["score"] for row in kept]

    assert scores == sorted(scores, reverse=True)
    assert (document["winner"] is None) == (not kept) == bool(document["relaxations"])
    if kept:
        assert document["winner"] == f"{kept[0]['system']} on {kept[0]['device']}"
    for row in document["rows"]:
        assert row["life"]["source"]["date"]
        for finding in (*row["removed"], *row["points"]):
            assert finding["source"]["text"]
            assert finding["source"]["date"]


def test_the_guide_shows_what_is_printed(
    *, update_golden: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every answer in the documentation is the command's own output."""
    text = GUIDE.read_text("utf-8")
    blocks = re.findall(r"```text\n\$ lmi-build (.*)\n((?:.*\n)*?)```", text)
    assert len(blocks) == 2
    for command, shown in blocks:
        assert run(command.split()) == 0
        printed = capsys.readouterr().out
        if update_golden:
            old, new = f"{command}\n{shown}```", f"{command}\n{printed}```"
            GUIDE.write_text(GUIDE.read_text("utf-8").replace(old, new), "utf-8")
        else:
            assert shown == printed
