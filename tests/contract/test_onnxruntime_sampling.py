"""Laws of sampled answers, with a real engine: one prompt, and several at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

from make_tiny_model import make_tiny_model
from onnxruntime_engines import EXACT, compile_engine, load_engine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from lmi_build.package.handlers import onnxruntime_genai as handler

PROMPTS = ["The model is read", "One, two"]
NEW = 12


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> handler.Engine:
    """A tiny float engine for two prompts at once."""
    root = tmp_path_factory.mktemp("sampling")
    out, _ = compile_engine(make_tiny_model(root / "model"), root / "job", **EXACT)
    return load_engine(out)


def ask(engine: handler.Engine, **parameters: Any) -> list[dict[str, Any]]:
    """Answers to both prompts in one request, with their tokens."""
    document = {"max_new_tokens": NEW, "details": True, **parameters}
    answers: list[dict[str, Any]] = engine.generate(PROMPTS, document)
    return answers


def tokens_of(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["details"]["tokens"]]


def texts(answers: Sequence[dict[str, Any]]) -> list[str]:
    return [answer["generated_text"] for answer in answers]


@pytest.mark.parametrize(
    "narrow", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}], ids=str
)
def test_one_candidate_is_greedy(
    engine: handler.Engine, narrow: dict[str, float]
) -> None:
    """However it came to be alone, and whatever the seed."""
    greedy = ask(engine)
    for seed in (0, 1):
        answers = ask(engine, do_sample=True, seed=seed, **narrow)

        assert [tokens_of(a) for a in answers] == [tokens_of(a) for a in greedy]


def test_a_temperature_of_zero_is_greedy(engine: handler.Engine) -> None:
    assert texts(ask(engine, temperature=0.0, seed=4)) == texts(ask(engine))


def test_a_seed_repeats_a_batch(engine: handler.Engine) -> None:
    """Alone and together, the same seed draws the same tokens; another one others."""
    wanted = {"temperature": 1.6, "top_p": 0.97, "max_new_tokens": NEW}
    together = texts(ask(engine, seed=11, **wanted))
    alone = [engine.generate(prompt, {"seed": 11, **wanted}) for prompt in PROMPTS]

    assert texts(ask(engine, seed=11, **wanted)) == together
    assert texts(alone) == together
    assert any(texts(ask(engine, seed=seed, **wanted)) != together for seed in range(4))


def test_log_probabilities_add_up(engine: handler.Engine) -> None:
    """Their sum is the answer's log probability, computed in one pass in float64."""
    for prompt, answer in zip(
        PROMPTS, ask(engine, temperature=1.3, seed=2), strict=True
    ):
        before, ids = engine.encode(prompt), tokens_of(answer)
        logits_TV = engine.logits([*before, *ids]).astype(np.float64)
        most_T1 = logits_TV.max(axis=1, keepdims=True)
        logits_TV -= most_T1 + np.log(
            np.exp(logits_TV - most_T1).sum(axis=1, keepdims=True)
        )
        start = len(before) - 1
        exact = sum(logits_TV[start + place, i] for place, i in enumerate(ids))
        found = sum(token["log_prob"] for token in answer["details"]["tokens"])

        assert found == pytest.approx(exact, abs=1e-4)


def test_a_penalty_forbids_repetition(engine: handler.Engine) -> None:
    """A penalty that nothing outweighs leaves no token twice, nor one of the prompt."""
    for prompt, answer in zip(
        PROMPTS, ask(engine, repetition_penalty=1e9), strict=True
    ):
        ids = tokens_of(answer)

        assert len(ids) == len(set(ids))
        assert not set(ids) & set(engine.encode(prompt))


def test_a_stop_sequence_is_never_shown(engine: handler.Engine) -> None:
    """Each row ends before its own; the other goes on as if it were alone."""
    whole = texts(ask(engine))
    stop = whole[0][4:7]
    answers = ask(engine, stop=[stop])

    assert len(stop) == 3
    for before, answer in zip(whole, answers, strict=True):
        assert stop not in answer["generated_text"]
        assert answer["generated_text"] == before.split(stop)[0]
        reason = answer["details"]["finish_reason"]
        assert (reason == "stop_sequence") is (stop in before)
    assert answers[0]["details"]["finish_reason"] == "stop_sequence"


def test_each_of_several_ends_is_one(tmp_path: Path, engine: handler.Engine) -> None:
    """`generation_config.json` may list ends: any ends the answer, none is shown."""
    whole = ask(engine)[0]
    ids = tokens_of(whole)
    end = next(i for i in reversed(ids) if i != ids[0])
    model = make_tiny_model(tmp_path / "model")
    ends = json.dumps({"eos_token_id": [2, end]})
    (model / "generation_config.json").write_text(ends)
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    answer = ask(load_engine(out))[0]

    assert answer["details"]["finish_reason"] == "eos_token"
    assert tokens_of(answer) == ids[: ids.index(end) + 1]
    assert whole["generated_text"].startswith(answer["generated_text"])


@pytest.mark.parametrize("length", [1, 5, 16])
def test_every_row_is_as_long_as_asked(engine: handler.Engine, length: int) -> None:
    """Or shorter where its text ends."""
    for answer in ask(engine, max_new_tokens=length):
        details = answer["details"]

        assert details["generated_tokens"] == len(details["tokens"])
        if details["finish_reason"] == "length":
            assert details["generated_tokens"] == length
        else:
            assert details["finish_reason"] == "eos_token"
            assert details["generated_tokens"] <= length
