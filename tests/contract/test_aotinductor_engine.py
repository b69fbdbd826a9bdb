"""Compiled engines say what the model says, and keep what they promise."""

from __future__ import annotations

import json
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from aotinductor_engines import BOUNDS, compile_engine, load_engine
from lmi_build.package.handlers import generation
from make_tiny_model import make_tiny_model
from onnxruntime_engines import greedy, reference

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.package.handlers.aotinductor import Engine

pytestmark = pytest.mark.slow
IDS = [5, 17, 300, 42, 7, 9, 411, 23, 250, 99, 12, 3, 77, 8, 31, 64, 205]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with tied embeddings in bfloat16."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Its engine, compiled once."""
    engine, _ = compile_engine(model, tmp_path_factory.mktemp("job") / "job")
    return engine


@pytest.fixture(scope="module")
def engine(built: Path) -> Engine:
    """It loaded."""
    return load_engine(built)


def test_logits_and_tokens_are_those_of_transformers(
    model: Path, engine: Engine
) -> None:
    """Within 1e-4 relative, prompts longer than a piece included; the same tokens."""
    net = reference(model)
    ids = (IDS * 3)[: BOUNDS["max_seq_len"]]
    with torch.inference_mode():
        wanted = net(torch.tensor([ids])).logits[0].numpy()

    found = engine.logits(ids)
    assert found.shape == wanted.shape
    assert float(np.abs(found - wanted).max() / np.abs(wanted).max()) < 1e-5
    steps = list(engine.stream(IDS, {"max_new_tokens": 16}))
    assert greedy(net, IDS, len(steps)) == [step.token_id for step in steps]


def test_slots_answer_as_if_alone(engine: Engine) -> None:
    """More prompts than slots, of several lengths, answered side by side."""
    wanted = {"max_new_tokens": 9}
    prompts = [IDS[:5], IDS[3:], IDS[:1], IDS[2:9], IDS]
    together = [engine.begin(ids, wanted) for ids in prompts]
    engine.finish(together)
    alone = [list(engine.stream(ids, wanted)) for ids in prompts]

    assert [[step.token_id for step in text.steps] for text in together] == [
        [step.token_id for step in row] for row in alone
    ]
    assert engine.scheduler.num_running == engine.scheduler.num_waiting == 0


def test_more_texts_than_slots_take_turns(engine: Engine) -> None:
    """Streams that are read in turn answer as if alone, and none waits for another."""
    prompts = [IDS[:5], IDS[3:], IDS[2:9]]
    alone = [
        [step.token_id for step in engine.stream(ids, {"max_new_tokens": 6})]
        for ids in prompts
    ]
    streams = [engine.stream(ids, {"max_new_tokens": 6}) for ids in prompts]
    turns = [[next(stream).token_id for stream in streams] for _ in range(6)]

    assert len(prompts) > BOUNDS["max_batch_size"]
    assert [list(row) for row in zip(*turns, strict=True)] == alone


def test_bounds_hold_at_exactly_the_limit(engine: Engine) -> None:
    """The longest prompt and answer are taken; one more of either is not."""
    longest, most = BOUNDS["max_input_len"], BOUNDS["max_output_len"]
    ids = [IDS[i % len(IDS)] for i in range(longest + 1)]

    assert list(engine.stream(ids[:longest], {"max_new_tokens": most}))
    with pytest.raises(generation.BoundExceeded, match="25 tokens"):
        engine.stream(ids, {"max_new_tokens": 1})
    with pytest.raises(generation.BoundExceeded, match=f"{most + 1}"):
        engine.stream(ids[:1], {"max_new_tokens": most + 1})
    with pytest.raises(generation.BoundExceeded, match="max_seq_len = 40"):
        engine.logits([1] * (BOUNDS["max_seq_len"] + 1))


def test_graphs_look_at_their_inputs(engine: Engine) -> None:
    """A shape that a graph was not built for is refused by the graph itself."""
    session = engine.session
    ids = torch.zeros(BOUNDS["max_input_len"] + 1, dtype=torch.int64)

    with pytest.raises(generation.EngineBroken, match=r"expected: 24, but got: 25"):
        session._run("context_24", ids, torch.tensor([0, 25]), *session._views[0])


def test_no_file_names_a_place(built: Path, model: Path) -> None:
    """Neither the checkpoint's folder nor torch's is in what was compiled."""
    with zipfile.ZipFile(built / "engine.pt2") as package:
        data = b"".join(package.read(name) for name in package.namelist())

    for place in (str(model), str(built.parent), torch.__path__[0]):
        assert place.encode() not in data


def broken(built: Path, place: Path) -> Path:
    """A copy of the engine to be broken."""
    folder = place / "engine"
    shutil.copytree(built, folder)
    return folder


def change(folder: Path, **entries: Any) -> None:
    """Let the engine's own file say something else."""
    path = folder / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **entries}))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"torch": "2.5.1"}, r"compiled with torch 2\.5\.1, here is 2\."),
        ({"cpu_flags": ["avx99"], "isa": "avx99"}, r"for `avx99`.*no avx99"),
        ({"compute_capability": "9.0"}, r"compute capability 9\.0"),
        ({"graphs": ["context_7"]}, r"does not give the graph `context_7`"),
    ],
)
def test_an_engine_for_another_place_is_refused(
    tmp_path: Path, built: Path, entries: dict[str, Any], words: str
) -> None:
    """Both sides are named, and nothing is run."""
    folder = broken(built, tmp_path)
    change(folder, **entries)

    with pytest.raises(generation.EngineBroken, match=words):
        load_engine(folder)


def test_each_of_several_ends_is_one(
    tmp_path: Path, built: Path, engine: Engine
) -> None:
    """Any token of the list ends the answer."""
    ids = [step.token_id for step in engine.stream(IDS, {"max_new_tokens": 9})]
    end = ids[-1]
    folder = broken(built, tmp_path)
    change(folder, eos_token_ids=[2, end])
    steps = list(load_engine(folder).stream(IDS, {"max_new_tokens": 9}))

    assert [step.token_id for step in steps] == ids[: ids.index(end) + 1]
    assert steps[-1].finish_reason == "eos_token"
    assert steps[-1].text == ""


def test_a_missing_constant_is_named(tmp_path: Path, built: Path) -> None:
    """Half of the weights make no engine."""
    from safetensors.torch import load_file, save_file

    folder = broken(built, tmp_path)
    weights = load_file(folder / "weights.safetensors")
    weights.pop("decoder.final_norm.weight")
    save_file(weights, folder / "weights.safetensors")

    with pytest.raises(generation.EngineBroken, match=r"1 constants.*final_norm"):
        load_engine(folder)


@pytest.mark.parametrize("name", ["engine.pt2", "weights.safetensors", "engine.json"])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, built: Path, name: str) -> None:
    """A package, weights or record cut in half gives an error that names it."""
    folder = broken(built, tmp_path)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])

    with pytest.raises(generation.EngineBroken, match=name):
        load_engine(folder)
