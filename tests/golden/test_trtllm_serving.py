"""What each release is given to load, and what it does with other folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmi_build.backends.trtllm.front_ends import front_ends
from lmi_build.backends.trtllm.layout import artifact_layout
from lmi_build.backends.trtllm.serving_keys import serving_problems, serving_properties
from lmi_build.backends.trtllm.startup import startup
from lmi_build.catalog.releases import releases
from lmi_build.package.properties import render_properties
from trtllm_folders import (
    HF_CONFIG,
    artifact_texts,
    engine_config,
    folder_of,
    placement,
)

HERE = Path(__file__).parent / "trtllm-serving"
SERVED = [
    row for row in releases().values() if row.properties and "engine" in row.artifacts
]
PARALLEL = ((1, 1), (4, 1), (2, 2))
TRITON, ENGINE = (
    releases()["djl-tensorrtllm-0.32.0"],
    releases()["djl-tensorrtllm-0.33.0"],
)


def kept(path: Path, text: str, *, update: bool) -> str:
    """The text of a golden file, rewritten first when that is asked for."""
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    return path.read_text("utf-8")


def release_text(name: str) -> str:
    """Properties and layout of one release, for each kind and parallelism."""
    release = releases()[name]
    parts = []
    texts: dict[str, str] = {}
    for kind in release.artifacts:
        for tp, pp in PARALLEL:
            place = placement(kind, tp=tp, pp=pp)
            parts.append(f"== {kind} tp {tp} pp {pp}")
            if problems := list(serving_problems(release, place)):
                parts += [f"refused: {problem.message}" for problem in problems]
                continue
            layout = artifact_layout(release, place)
            texts |= layout.files
            parts += [f"tokenizer in {layout.tokenizer_dir}"]
            parts += [f"file {path}" for path in layout.expected()]
            entries = serving_properties(release, place, dtype="bfloat16")
            parts.append(render_properties(entries).decode().rstrip())
    for path, text in texts.items():
        parts += [f"== {path}", text.rstrip()]
    return "\n".join(parts) + "\n"


def folders() -> dict[str, dict[str, str]]:
    """Folders that people deploy, by what they are."""
    engine, triton = artifact_texts(ENGINE, tp=2), artifact_texts(TRITON, tp=2)
    lazy = "engine=MPI\noption.tensor_parallel_degree=2\n"
    model = {
        "config.json": json.dumps(HF_CONFIG),
        "model.safetensors": "weights",
        "tokenizer.json": "{}",
        "serving.properties": "engine=Python\n",
    }
    bare = {"serving.properties": lazy}
    short = {path: text for path, text in engine.items() if "rank1" not in path}
    return {
        "engine folder": engine,
        "engine folder, a rank missing": short,
        "engine folder, other properties": {
            **engine,
            "serving.properties": "engine=Python\n",
        },
        "Triton repository": triton,
        "Triton repository, engine=MPI alone": {**triton, **bare},
        "Triton repository, an engine's config.json at the root": {
            **triton,
            **bare,
            "config.json": json.dumps(engine_config()),
        },
        "Triton repository, no tokenizer_config.json": {
            path: text
            for path, text in triton.items()
            if not path.endswith("tokenizer_config.json")
        },
        "Triton repository at the root": {
            **{path.split("/", 1)[-1]: text for path, text in triton.items()},
            "config.json": json.dumps(HF_CONFIG),
        },
        "model": model,
        "model, backend=pytorch": {
            **model,
            "serving.properties": "engine=Python\noption.backend=pytorch\n",
        },
        "model_id of a bucket": {
            **engine,
            "serving.properties": "engine=Python\noption.model_id=s3://bucket/x/\n",
        },
        "no properties": {"tensorrt_llm/config.pbtxt": ""},
    }


def startup_text() -> str:
    """The verdict of every release on every folder, with its reason."""
    parts = []
    for what, texts in folders().items():
        parts.append(f"== {what}")
        rows = [startup(folder_of(texts), lmi) for lmi in front_ends()]
        parts += [f"{row.lmi} {row.outcome}: {row.reason}" for row in rows]
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize("name", [row.name for row in SERVED])
def test_what_a_release_is_given_is_kept(name: str, *, update_golden: bool) -> None:
    text = release_text(name)

    assert text == kept(HERE / f"{name}.txt", text, update=update_golden)


def test_what_releases_do_at_start_is_kept(*, update_golden: bool) -> None:
    """Rewritten only after the real front ends were asked again."""
    text = startup_text()

    assert text == kept(HERE / "startup.txt", text, update=update_golden)
