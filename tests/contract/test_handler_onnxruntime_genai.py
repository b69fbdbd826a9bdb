"""The shipped handler with a real, small engine keeps its promises."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

from lmi_build.package.handlers import generation
from lmi_build.package.handlers import onnxruntime_genai as handler
from make_tiny_model import make_tiny_model
from onnxruntime_engines import BOUNDS, compile_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An engine of a tiny model with the handler's settings beside it."""
    root = tmp_path_factory.mktemp("artifact")
    model = make_tiny_model(root / "model")
    compile_engine(model, root)
    settings = {"engine_dir": "engine", "bounds": BOUNDS}
    (root / generation.SETTINGS_NAME).write_text(json.dumps(settings))
    yield root
    generation._ENGINES.clear()


@pytest.fixture(scope="module")
def engine(artifact: Path) -> handler.Engine:
    """The engine of `artifact`."""
    return handler.Engine(artifact)


def prompt_of(length: int) -> list[int]:
    return [10 + index for index in range(length)]


class TestBounds:
    """What is promised is served, one more is refused with both numbers."""

    def test_the_longest_request_is_served(self, engine: handler.Engine) -> None:
        """Both bounds at once fit into the engine."""
        steps = list(engine.stream(prompt_of(24), {"max_new_tokens": 16}))

        assert 1 <= len(steps) <= 16
        assert steps[-1].finish_reason in {"length", "eos_token"}

    def test_one_token_more_is_refused(self, engine: handler.Engine) -> None:
        """The refusal comes with the call, before anything is generated."""
        with pytest.raises(generation.BoundExceeded, match=r"25.*max_input_len = 24"):
            engine.stream(prompt_of(25), {})
        with pytest.raises(generation.BoundExceeded, match=r"17.*max_output_len = 16"):
            engine.stream(prompt_of(1), {"max_new_tokens": 17})

    def test_a_batch_is_bounded(self, engine: handler.Engine) -> None:
        """`max_batch_size` prompts are answered, one more is refused."""
        assert len(engine.generate(["a", "b"], {"max_new_tokens": 2})) == 2
        with pytest.raises(generation.BoundExceeded, match=r"3.*max_batch_size = 2"):
            engine.generate(["a", "b", "c"], {})

    def test_one_bad_prompt_refuses_the_batch_first(
        self, engine: handler.Engine
    ) -> None:
        """No prompt is answered when another one is too long."""
        with pytest.raises(generation.BoundExceeded, match="max_input_len"):
            engine.generate(["a", "b " * 50], {})

    def test_logits_are_bounded(self, engine: handler.Engine) -> None:
        """`max_seq_len` positions fit, one more does not."""
        assert engine.logits(prompt_of(40)).shape == (40, 512)
        with pytest.raises(generation.BoundExceeded, match=r"41.*max_seq_len = 40"):
            engine.logits(prompt_of(41))

    @pytest.mark.parametrize("inputs", ["", [], [1], 3, None, {"a": 1}])
    def test_no_prompt_is_no_request(self, engine: handler.Engine, inputs: Any) -> None:
        """Anything but text is refused by the name of the field."""
        with pytest.raises(generation.InvalidRequest, match="`inputs`"):
            engine.generate(inputs, {})


def _adds_first(token: str, token_id: int) -> dict[str, Any]:
    """A step of `tokenizer.json` that puts a token before each text."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _before_eos(ids: list[int]) -> list[int]:
    return ids[:-1] if ids[-1] == 2 else ids


class TestText:
    """Tokens and text."""

    @pytest.mark.parametrize(
        "text", ["What is it?", "  two  spaces\n\ttab", "naïve 你好 🙂 👩‍💻 ﷺ"]
    )
    def test_tokens_are_those_of_the_tokenizer(
        self, engine: handler.Engine, artifact: Path, text: str
    ) -> None:
        """The engine's tokenizer and the model's agree, there and back."""
        from tokenizers import Tokenizer

        wanted = Tokenizer.from_file(str(artifact / "model" / "tokenizer.json"))

        assert wanted.encode(text).ids == engine.encode(text)
        assert text == engine.decode(engine.encode(text))

    def test_pieces_make_the_answer(
        self, engine: handler.Engine, artifact: Path
    ) -> None:
        """Streamed texts join to what the tokenizer decodes, even from no text."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(artifact / "model" / "tokenizer.json"))
        for start in range(150, 260, 11):
            steps = list(engine.stream([start, start + 1], {"max_new_tokens": 16}))
            ids = [step.token_id for step in steps]

            wanted = tokenizer.decode(_before_eos(ids))
            assert "".join(step.text for step in steps) == wanted
            assert engine.decode(ids) == wanted

    def test_the_chat_template_is_the_models(self, engine: handler.Engine) -> None:
        """A conversation ends with the assistant's turn."""
        text = engine.apply_chat_template([{"role": "user", "content": "hi"}])

        assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

    def test_special_tokens_show_nothing(self, engine: handler.Engine) -> None:
        """Alone or in a row they are no text, and no broken character either."""
        assert [engine.decode(ids) for ids in ([0], [1], [2, 2])] == ["", "", ""]

    def test_a_conversation_begins_once(self, artifact: Path, tmp_path: Path) -> None:
        """A first token that template and tokenizer both write is not doubled."""
        root = tmp_path / "artifact"
        shutil.copytree(artifact, root)
        path = root / "engine" / "tokenizer.json"
        document = json.loads(path.read_bytes())
        document["post_processor"] = _adds_first("<|im_start|>", 1)
        path.write_text(json.dumps(document))
        engine = handler.Engine(root)
        ids = engine.encode(
            engine.apply_chat_template([{"role": "user", "content": ""}])
        )

        assert engine.encode("a") == [1, 67]
        assert ids[0] == 1
        assert ids[1] != 1

    def test_a_stop_sequence_is_cut_off(self, engine: handler.Engine) -> None:
        """The answer ends before the text that stops it, wherever tokens end."""
        whole = engine.generate("The model", {"max_new_tokens": 16})["generated_text"]
        assert len(whole) > 6
        stop = whole[3:6]
        answer = engine.generate(
            "The model", {"max_new_tokens": 16, "stop": [stop], "details": True}
        )

        assert answer["generated_text"] == whole[: whole.index(stop)]
        assert answer["details"]["finish_reason"] == "stop_sequence"


class TestAnswers:
    """The form of LMI's answers."""

    def test_details_come_when_asked_for(self, engine: handler.Engine) -> None:
        """Without `details` there is the text only; with them every token."""
        plain = engine.generate("The model", {"max_new_tokens": 4})
        full = engine.generate("The model", {"max_new_tokens": 4, "details": True})

        assert list(plain) == ["generated_text"]
        assert full["generated_text"] == plain["generated_text"]
        assert full["details"]["inputs"] == "The model"
        assert len(full["details"]["tokens"]) == full["details"]["generated_tokens"]
        assert all(token["log_prob"] <= 0 for token in full["details"]["tokens"])

    def test_the_prompt_may_come_first(self, engine: handler.Engine) -> None:
        """`return_full_text` puts the prompt before the answer."""
        plain = engine.generate("The model", {"max_new_tokens": 4})
        full = engine.generate(
            "The model", {"max_new_tokens": 4, "return_full_text": True}
        )

        assert full["generated_text"] == "The model" + plain["generated_text"]

    def test_a_stream_ends_with_the_whole_text(self, engine: handler.Engine) -> None:
        """Only the last line has the text, and it is that of the pieces."""
        lines = list(engine.lines("The model", {"max_new_tokens": 5}))
        whole = engine.generate("The model", {"max_new_tokens": 5})

        assert [set(line) for line in lines[:-1]] == [{"token"}] * (len(lines) - 1)
        assert lines[-1]["generated_text"] == whole["generated_text"]

    def test_a_seed_repeats_an_answer(self, engine: handler.Engine) -> None:
        """The same seed gives the same sampled answer, others differ."""

        def ask(seed: int) -> str:
            wanted = {"max_new_tokens": 16, "temperature": 1.5, "seed": seed}
            return str(engine.generate("The model", wanted)["generated_text"])

        assert ask(1) == ask(1)
        assert len({ask(seed) for seed in range(4)}) > 1

    def test_threads_do_not_disturb_each_other(self, engine: handler.Engine) -> None:
        """Answers that are generated side by side are those given alone."""
        prompts = ["One", "two", "three", "four"]
        wanted = [engine.generate(prompt, {}) for prompt in prompts]
        found: dict[int, Any] = {}

        def ask(index: int) -> None:
            found[index] = engine.generate(prompts[index], {})

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert wanted == [found[index] for index in range(4)]


class FakeOutput:
    """What `djl_python.Output` records, as far as the handler uses it."""

    def __init__(self) -> None:
        self.code = 200
        self.properties: dict[str, str] = {}
        self.body = b""

    def error(self, error: str, code: int = 424, message: str = "") -> FakeOutput:
        """Like the real one: a status and a reason."""
        self.code, self.body = code, error.encode()
        del message
        return self

    def add_property(self, key: str, value: str) -> FakeOutput:
        """Like the real one: a header."""
        self.properties[key] = value
        return self

    def add(self, value: str) -> FakeOutput:
        """Like the real one: the body."""
        self.body = value.encode()
        return self

    def add_stream_content(self, lines: Any, formatter: Any) -> FakeOutput:
        """Drain the stream, as the engine does while sending."""
        self.body = b"".join(formatter(line) for line in lines)
        return self


class FakeInput:
    """What `djl_python.Input` offers, as far as the handler uses it."""

    def __init__(self, root: Path, body: bytes) -> None:
        self._root, self._body = root, body

    def get_property(self, key: str) -> str | None:
        """The folder of the artifact."""
        return str(self._root) if key == "model_dir" else None

    def is_empty(self) -> bool:
        """Whether there is no body."""
        return not self._body

    def get_as_json(self) -> Any:
        """The body, parsed."""
        return json.loads(self._body)


class TestHandle:
    """DJL Serving's entry point."""

    @pytest.fixture(autouse=True)
    def _djl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = types.ModuleType("djl_python")
        module.Output = FakeOutput  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "djl_python", module)

    def ask(self, root: Path, body: Any) -> FakeOutput:
        """One request; `bytes` are sent as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        output: FakeOutput = handler.handle(FakeInput(root, data))
        return output

    def test_the_empty_request_loads(self, artifact: Path) -> None:
        """The front end's first request loads the engine and is answered 200."""
        assert self.ask(artifact, b"").code == 200
        assert str(artifact) in generation._ENGINES

    def test_an_answer_is_json(self, artifact: Path, engine: handler.Engine) -> None:
        """A request is answered as `generate` says."""
        output = self.ask(artifact, {"inputs": "The", "parameters": {"details": True}})

        assert output.properties["content-type"] == "application/json"
        assert json.loads(output.body) == engine.generate("The", {"details": True})

    def test_a_stream_is_json_lines(self, artifact: Path) -> None:
        """Each token is a line of its own."""
        output = self.ask(
            artifact,
            {"inputs": "The", "stream": True, "parameters": {"max_new_tokens": 3}},
        )
        lines = [json.loads(line) for line in output.body.splitlines()]

        assert output.properties["content-type"] == "application/jsonlines"
        assert "generated_text" in lines[-1]
        assert all("token" in line for line in lines)

    @pytest.mark.parametrize(
        ("body", "code", "words"),
        [
            (b"{", 400, b"not JSON"),
            (b"\xff", 400, b"not JSON"),
            ([], 400, b"JSON object"),
            ({"inputs": "x", "parameters": {"top_q": 1}}, 400, b"`top_p`"),
            ({"inputs": "x " * 30}, 413, b"max_input_len = 24"),
            ({"inputs": "x " * 30, "stream": True}, 413, b"max_input_len = 24"),
            ({"inputs": ["x"] * 3}, 413, b"max_batch_size = 2"),
        ],
    )
    def test_bad_requests_get_their_status(
        self, artifact: Path, body: Any, code: int, words: bytes
    ) -> None:
        """400 for what is wrong, 413 for what is too much, with the reason."""
        output = self.ask(artifact, body)

        assert output.code == code
        assert words in output.body
