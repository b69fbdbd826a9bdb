"""The text of a lock is what it was: people review it, tools merge it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lmi_build.recipe.lock import lock_text
from lmi_build.recipe.lock_reader import parse_lock
from lmi_build.values.lock import LockedData
from lmi_build.values.model import FileFact
from locked_plans import COMMIT, Machine, plan_on

GOLDEN = Path(__file__).parent / "sample.lock"


def test_text_of_a_lock(update_golden: bool) -> None:  # noqa: FBT001
    """Every kind of entry, as it stands in a file."""
    _, lock = plan_on(Machine(versions={"torch": "2.13.0+cpu"}))
    lock = replace(
        lock,
        jobs=("sample-0123456789ab",),
        calibration=(
            LockedData(
                dataset="hub:acme/chats@main/train.jsonl",
                num_tokens=32768,
                commit=COMMIT,
                files=(
                    FileFact(path="train.jsonl", size=9, digest=f"git-sha1:{COMMIT}"),
                ),
            ),
        ),
        images={"compile": "djl-inference:0.33.0-tensorrtllm0.21.0-cu128"},
        tools={**lock.tools, "sample-rtn/compile": {"onnxruntime": "2.0"}},
        toolchains={"gptqmodel": {"gptqmodel": "4.2.5"}},
    )

    text = lock_text(lock)

    if update_golden:
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text
    assert parse_lock(text, "sample.lock") == lock
