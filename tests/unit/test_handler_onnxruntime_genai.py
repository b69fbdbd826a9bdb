"""The shipped handler's own logic, without an engine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lmi_build.package.handler_files import handler_source
from lmi_build.package.handlers import generation
from lmi_build.package.handlers import onnxruntime_genai as handler

if TYPE_CHECKING:
    from pathlib import Path

MAX_OUTPUT_LEN = 100


def read(**document: Any) -> generation.Parameters:
    return generation.read_parameters(document, MAX_OUTPUT_LEN)


class TestParameters:
    """What a request may ask for."""

    def test_defaults_are_those_of_lmi(self) -> None:
        """An empty request is greedy, 30 tokens, without details."""
        found = read()

        assert found == generation.Parameters(
            max_new_tokens=30,
            do_sample=False,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            seed=None,
            stop_sequences=(),
            return_full_text=False,
            details=False,
        )

    def test_the_default_length_respects_a_small_bound(self) -> None:
        """A client that names no length is never over the bound."""
        assert generation.read_parameters({}, 7).max_new_tokens == 7

    def test_the_bound_itself_is_accepted(self) -> None:
        """The last allowed length works, the next one is refused with both numbers."""
        assert read(max_new_tokens=100).max_new_tokens == 100
        with pytest.raises(
            generation.BoundExceeded, match=r"101.*max_output_len = 100"
        ):
            read(max_new_tokens=101)

    @pytest.mark.parametrize(
        ("document", "words"),
        [
            ({"max_new_token": 3}, "did you mean `max_new_tokens`"),
            ({"zzzzqqq": 3}, "unknown parameter `zzzzqqq`$"),
            ({"max_new_tokens": 0}, "`max_new_tokens` is 0, it must be 1 or more"),
            ({"max_new_tokens": 1.5}, "must be a whole number"),
            ({"max_new_tokens": True}, "must be a whole number"),
            ({"max_new_tokens": "3"}, "must be a whole number"),
            ({"temperature": -0.1}, "`temperature` is -0.1"),
            ({"temperature": math.nan}, "`temperature` is nan"),
            ({"temperature": math.inf}, "must be finite"),
            ({"temperature": "hot"}, "must be a number"),
            ({"top_p": 1.01}, "`top_p` is 1.01"),
            ({"top_k": -2}, "`top_k` is -2"),
            ({"repetition_penalty": 0}, "must be more than 0"),
            ({"seed": -1}, "`seed` is -1"),
            ({"seed": 1 << 63}, "`seed` is"),
            ({"do_sample": 1}, "`do_sample` is 1, it must be true or false"),
            ({"details": "yes"}, "`details` is 'yes'"),
            ({"stop": [""]}, "would stop at once"),
            ({"stop": 3}, "must be a list of strings"),
            ({"stop_sequences": ["a", 1]}, "must be a list of strings"),
            ({"stop": ["a"], "stop_sequences": ["b"]}, "give one"),
            ({"stop": ["a"] * 17}, "17 entries"),
            ({"num_beams": 2}, "`num_beams` is 2, which this engine cannot do"),
            ({"decoder_input_details": True}, "cannot do"),
        ],
    )
    def test_what_is_wrong_is_named(self, document: Any, words: str) -> None:
        """A wrong parameter is refused by its name."""
        with pytest.raises(generation.InvalidRequest, match=words):
            generation.read_parameters(document, MAX_OUTPUT_LEN)

    def test_neutral_values_of_other_engines_are_accepted(self) -> None:
        """Clients that always send LMI's other parameters are served."""
        neutral = {name: values[0] for name, values in generation.NEUTRAL.items()}

        assert read(**neutral) == read()
        assert read(**dict.fromkeys(neutral)) == read()

    @pytest.mark.parametrize(
        ("document", "sampled"),
        [
            ({}, False),
            ({"temperature": 0.7}, True),
            ({"top_k": 5}, True),
            ({"top_p": 0.9}, True),
            ({"temperature": 1.0, "top_k": 0, "top_p": 1.0}, False),
            ({"temperature": 0.7, "do_sample": False}, False),
            ({"do_sample": True}, True),
            ({"do_sample": True, "temperature": 0}, False),
        ],
    )
    def test_sampling_follows_lmi(self, document: Any, *, sampled: bool) -> None:
        """Sampling options switch sampling on; temperature 0 is greedy."""
        assert read(**document).do_sample is sampled

    def test_both_names_of_stop_sequences_work(self) -> None:
        """`stop` may be one string; both spellings mean the same."""
        assert read(stop="x").stop_sequences == ("x",)
        assert read(stop=["x"]) == read(stop_sequences=["x"])


class TestRequest:
    """The body of a request."""

    def test_stream_is_read_in_both_places(self) -> None:
        """LMI's clients send `stream` beside the inputs or among the parameters."""
        inside = generation.read_request(
            {"inputs": "x", "parameters": {"stream": True}}
        )
        beside = generation.read_request({"inputs": "x", "stream": True})

        assert inside == beside == ("x", {}, True)

    @pytest.mark.parametrize(
        ("document", "words"),
        [
            ([], "must be a JSON object"),
            ({}, "`inputs` is missing"),
            ({"inputs": "x", "paramaters": {}}, "unknown field `paramaters`"),
            ({"inputs": "x", "parameters": []}, "must be an object"),
            ({"inputs": "x", "stream": 1}, "must be true or false"),
            ({"inputs": ["x"], "stream": True}, "one string"),
        ],
    )
    def test_other_bodies_are_refused(self, document: Any, words: str) -> None:
        """A body of another form is refused by its field."""
        with pytest.raises(generation.InvalidRequest, match=words):
            generation.read_request(document)


def byte_level(*, special: bool = False) -> generation.TokenBytes:
    """A tokenizer whose first 256 tokens are bytes, as below every byte-level BPE."""
    vocabulary = generation.byte_alphabet()
    return generation.TokenBytes(
        {
            "decoder": {"type": "ByteLevel"},
            "model": {"vocab": {**vocabulary, "<extra>": 256}},
            "added_tokens": [{"id": 256, "content": "<extra>", "special": special}],
        }
    )


def fallback() -> generation.TokenBytes:
    """A tokenizer as SentencePiece models become: pieces, and bytes for the rest."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    return generation.TokenBytes(
        {
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace"},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip"},
                ],
            },
            "model": {"vocab": {**vocabulary, "\u2581the": 256, "\u2581": 257}},
        }
    )


TEXTS = ("plain", "naïve café", "你好", "🙂🙂 👩‍💻", "ﷺ\u200d", "a\ufffdb")


class TestDetokenizer:
    """Text of tokens, as they come."""

    @pytest.mark.parametrize(
        "data",
        [
            *(text.encode() for text in TEXTS),
            bytes(range(256)),
            "🙂".encode()[:2] + b"rrr" + "🙂".encode()[2:] + "é".encode(),
        ],
    )
    def test_pieces_join_to_the_whole(self, data: bytes) -> None:
        """Whatever the tokens cut through, the pieces make the text again."""
        for table in (byte_level(), fallback()):
            detokenizer = generation.Detokenizer(table)
            pieces = [detokenizer.push(byte) for byte in data]
            pieces.append(detokenizer.flush())

            assert "".join(pieces) == data.decode(errors="replace")

    def test_half_a_character_is_never_shown(self) -> None:
        """A character appears with its last byte, not before."""
        detokenizer = generation.Detokenizer(byte_level())

        pieces = [detokenizer.push(byte) for byte in "é🙂".encode()]
        assert pieces == ["", "é", "", "", "", "🙂"]

    def test_an_answer_cut_inside_a_character_says_so(self) -> None:
        """What never became a character is marked at the end, once."""
        detokenizer = generation.Detokenizer(byte_level())
        pieces = [detokenizer.push(byte) for byte in "ok 🙂".encode()[:-1]]

        assert "".join(pieces) == "ok "
        assert detokenizer.flush() == "\ufffd"

    def test_special_tokens_have_no_text(self) -> None:
        """Special tokens and padding are silent, other added tokens are not."""
        assert byte_level(special=True)[256] == b""
        assert byte_level(special=False)[256] == b"<extra>"
        assert byte_level()[9999] == b""

    def test_the_first_space_of_pieces_is_dropped(self) -> None:
        """SentencePiece marks words by a leading space; a text begins without."""
        detokenizer = generation.Detokenizer(fallback())

        assert [detokenizer.push(token) for token in (257, 256)] == ["", " the"]

    def test_other_decoders_are_refused(self) -> None:
        """Text is never guessed."""
        with pytest.raises(generation.EngineBroken, match="unknown decoder: WordPiece"):
            generation.TokenBytes(
                {"decoder": {"type": "WordPiece"}, "model": {"vocab": {"a": 0}}}
            )


class TestStopWatch:
    """Texts that end an answer."""

    @pytest.mark.parametrize("size", [1, 2, 3, 100])
    def test_a_stop_across_borders_is_found(self, size: int) -> None:
        """However the text is cut, it ends before the first stop sequence."""
        text = "one two three END four"
        watch = generation.StopWatch(["END", "four"])
        shown = ""
        for start in range(0, len(text), size):
            part, stopped = watch.push(text[start : start + size])
            shown += part
            if stopped:
                break

        assert shown == "one two three "

    def test_false_beginnings_are_given_out(self) -> None:
        """Text that only looked like a stop sequence is not lost."""
        watch = generation.StopWatch(["aab"])
        shown = "".join(watch.push(char)[0] for char in "aaaacaa") + watch.flush()

        assert shown == "aaaacaa"

    def test_the_earliest_of_several_wins(self) -> None:
        """The answer ends at the stop sequence that comes first."""
        assert generation.StopWatch(["c", "b"]).push("abc") == ("a", True)


class TestSampler:
    """Which token comes next."""

    logits = np.array([0.5, 2.0, 1.0, -1.0, 1.9], np.float32)

    def pick(  # noqa: D102 - a shorthand
        self, logits: Any = None, prompt: Any = (), **document: Any
    ) -> int:
        sampler = generation.Sampler(read(**document), prompt)
        return sampler.pick(self.logits if logits is None else logits)[0]

    def test_greedy_takes_the_largest(self) -> None:
        """Without sampling the most likely token is taken."""
        assert self.pick() == 1

    def test_one_candidate_is_greedy(self) -> None:
        """`top_k: 1` and a vanishing `top_p` leave one candidate for every seed."""
        for seed in range(20):
            assert self.pick(top_k=1, seed=seed, do_sample=True) == 1
            assert self.pick(top_p=1e-9, seed=seed, do_sample=True) == 1

    def test_a_seed_repeats_itself(self) -> None:
        """The same seed draws the same tokens, another seed others."""

        def draw(seed: int) -> list[int]:
            sampler = generation.Sampler(read(seed=seed, do_sample=True), ())
            return [sampler.pick(self.logits)[0] for _ in range(50)]

        assert draw(5) == draw(5)
        assert draw(5) != draw(6)

    def test_draws_follow_the_distribution(self) -> None:
        """4000 draws agree with the softmax within five standard deviations."""
        sampler = generation.Sampler(read(seed=1, do_sample=True, temperature=0.8), ())
        counts = np.bincount([sampler.pick(self.logits)[0] for _ in range(4000)])
        weights = np.exp(self.logits.astype(float) / 0.8)
        expected = 4000 * weights / weights.sum()

        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()

    @pytest.mark.parametrize(
        ("document", "allowed"),
        [({"top_k": 2}, {1, 4}), ({"top_p": 0.6}, {1, 4}), ({"top_k": 3}, {1, 4, 2})],
    )
    def test_candidates_are_cut(self, document: Any, allowed: set[int]) -> None:
        """Only the candidates that `top_k` and `top_p` leave are drawn, and all."""
        sampler = generation.Sampler(read(seed=2, **document), ())

        assert {sampler.pick(self.logits)[0] for _ in range(300)} == allowed

    def test_the_penalty_moves_seen_tokens_down(self) -> None:
        """Above 1 it divides positive and multiplies negative logits of seen tokens."""
        assert self.pick(prompt=[1], repetition_penalty=1.2) == 4
        negative = np.array([-1.0, -1.1], np.float32)
        assert self.pick(negative, prompt=[0], repetition_penalty=1.2) == 1

    def test_the_log_probability_is_that_of_the_model(self) -> None:
        """Penalty and temperature do not change the reported probability."""
        sampler = generation.Sampler(read(repetition_penalty=1.2), [1])
        token, logprob = sampler.pick(self.logits)
        exact = self.logits.astype(float)

        assert logprob == pytest.approx(
            exact[token] - np.log(np.exp(exact).sum()), abs=1e-6
        )


def test_the_file_stands_alone(tmp_path: Path) -> None:
    """It imports without lmi_build, without an engine library and on Python 3.9."""
    source = handler_source("onnxruntime_genai")
    (tmp_path / "model.py").write_bytes(source)
    code = (
        "import sys, json, importlib.util as u;"
        "sys.modules.update(dict.fromkeys(['lmi_build', 'onnxruntime_genai']));"
        "s = u.spec_from_file_location('model', 'model.py');"
        "m = u.module_from_spec(s); sys.modules['model'] = m; s.loader.exec_module(m);"
        "print(json.dumps(sorted(n for n in sys.modules if n.startswith('torch'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    )

    assert json.loads(done.stdout) == []
    compile(source, "model.py", "exec", dont_inherit=True)
    import ast

    ast.parse(source, feature_version=(3, 9))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, "cannot be read"),
        ("[]", "is not a JSON object"),
        ("{", "cannot be read"),
        ("{}", "has no bounds"),
        ('{"bounds": {"max_input_len": 1}}', "no bound `max_output_len`"),
        (
            (
                '{"bounds": {"max_input_len": 1, "max_output_len": 1,'
                ' "max_seq_len": 2, "max_batch_size": 0}}'
            ),
            "no bound `max_batch_size`",
        ),
        (
            (
                '{"bounds": {"max_input_len": 1, "max_output_len": 1,'
                ' "max_seq_len": 2, "max_batch_size": 1}}'
            ),
            "has no `model.onnx`",
        ),
    ],
)
def test_a_broken_artifact_says_what_is_missing(
    tmp_path: Path, settings: str | None, words: str
) -> None:
    """Loading fails with the file at fault, before any native code runs."""
    pytest.importorskip("onnxruntime_genai")
    if settings is not None:
        (tmp_path / generation.SETTINGS_NAME).write_text(settings)

    with pytest.raises(generation.EngineBroken, match=words):
        handler.Engine(tmp_path)
