"""Encoders through the real driver and handler give the float model's answers."""

from __future__ import annotations

import json
import shutil
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoders import FAMILIES, float_states, make_encoder, pooled, token_ids
from lmi_build.backends.neuronx.compile_checks import build_problems
from lmi_build.backends.neuronx.compile_plan import compile_plan
from lmi_build.backends.neuronx.trace import lower_trace, trace_expected
from lmi_build.backends.neuronx.trace_checks import (
    encoder_problems,
    read_record,
    read_reference,
)
from lmi_build.errors import VerifyFailed
from lmi_build.package.handlers import neuronx_encoder as handler
from lmi_build.verify.neuronx_encoder import check_reference
from neuron_encoders import (
    RELEASE,
    asked,
    build_encoders,
    facts,
    faults,
    recipe,
    run_driver,
    standin,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.values.recipe import Recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
BUCKETS = {"length_buckets": [8, 24]}
TEXTS = ["a quick fox", "one more word " * 5, "x", "  Two  foxes, QUICK! "]
LABELS = {"id2label": {0: "no", 1: "yes", 2: "so"}, "label2id": {}}
# Two orders of adding the same float32 numbers.
CLOSE = 1e-5


class Built:
    """Models, recipes and artifacts by name."""

    def __init__(self, root: Path) -> None:
        self.models: dict[str, Any] = {}
        self.wanted: dict[str, tuple[Path, Recipe]] = {}
        for family in FAMILIES:
            self.add(root, family, family, {"pooling": "mean", "normalize": True})
        self.add(root, "cls", "roberta", {"pooling": "cls", "normalize": False})
        both = {"pooling": ("mean", "max"), "normalize": False, "do_lower_case": True}
        self.add(root, "both", "bert", both)
        self.add(root, "own", "bert", None, pooling="mean_sqrt_len", normalize=True)
        self.add(root, "scores", "bert", None, head="ForSequenceClassification")
        self.add(root, "tokens", "distilbert", None, head="ForTokenClassification")
        self.roots = build_encoders(self.wanted, root)

    def add(
        self,
        root: Path,
        name: str,
        family: str,
        sentence: dict[str, Any] | None,
        head: str = "Model",
        **options: Any,
    ) -> None:
        """Save a model and keep it."""
        folder = root / f"{name}.model"
        more: dict[str, Any] = {} if head == "Model" else LABELS
        self.models[name] = make_encoder(
            folder, family, head=head, sentence=sentence, **more
        )
        self.wanted[name] = (folder, recipe({**BUCKETS, **options}))

    def engine(self, name: str) -> Path:
        """The folder of the graphs."""
        return self.roots[name] / "engine"

    def call(self, name: str) -> dict[str, Any]:
        """The call that made them."""
        found: dict[str, Any] = asked(*self.wanted[name])["call"]
        return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    yield Built(tmp_path_factory.mktemp("encoders"))
    handler._ENGINES.clear()


@pytest.fixture(scope="module", autouse=True)
def _torch_neuronx() -> Iterator[None]:
    with standin():
        yield


def vectors(built: Built, name: str, texts: list[str], **wish: Any) -> np.ndarray:
    """What the float model means, re-derived in float64 without padding."""
    folder, model = built.wanted[name][0], built.models[name]
    return np.array(
        [pooled(float_states(model, folder, text), **wish) for text in texts]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_float_models_vectors(built: Built, family: str) -> None:
    """Whatever the graph's length, the padding and the neighbours are."""
    found = handler.Engine(built.roots[family]).generate(TEXTS, {})
    texts = [text.strip() for text in TEXTS]
    wanted = vectors(built, family, texts, pooling=("mean",), normalize=True)

    assert np.abs(np.array(found) - wanted).max() < CLOSE
    # Random weights tell texts apart, so that the line above means something.
    assert np.abs(wanted[0] - wanted[1]).max() > 1000 * CLOSE


@pytest.mark.parametrize(
    ("name", "pooling", "normalize"),
    [
        ("cls", ("cls",), False),
        ("both", ("max", "mean"), False),
        ("own", ("mean_sqrt_len",), True),
    ],
)
def test_pooling_is_that_of_the_files_or_of_the_recipe(
    built: Built, name: str, pooling: tuple[str, ...], *, normalize: bool
) -> None:
    """Several are joined in the order of sentence-transformers."""
    text = "the quick fox"
    found = handler.Engine(built.roots[name]).generate(text, {})
    wanted = vectors(built, name, [text], pooling=pooling, normalize=normalize)

    assert np.abs(np.array(found) - wanted).max() < CLOSE


def test_scores_are_those_of_the_float_model_for_texts_and_pairs(built: Built) -> None:
    """Labels come with the likeliest first, and as many as were asked for."""
    import torch

    folder, model = built.wanted["scores"][0], built.models["scores"]
    engine = handler.Engine(built.roots["scores"])
    pair = {"text": "a fox", "text_pair": "is quick"}
    single, both = engine.generate(["a quick fox", pair], {})
    ids, types = token_ids(folder, "a quick fox")
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])
        ).logits[0]
    wanted = dict(zip(("no", "yes", "so"), logits.softmax(-1).tolist(), strict=True))

    assert {row["label"]: row["score"] for row in single} == pytest.approx(
        wanted, abs=CLOSE
    )
    assert [row["score"] for row in both] == sorted(
        (row["score"] for row in both), reverse=True
    )
    assert engine.generate([pair], {"top_k": 1}) == [both[:1]]


def test_tokens_get_the_label_of_the_float_model(built: Built) -> None:
    """Each with its word and its place in the text; special tokens have none."""
    import torch

    text = "a quick fox is one"
    folder, model = built.wanted["tokens"][0], built.models["tokens"]
    (found,) = handler.Engine(built.roots["tokens"]).generate(text, {})
    ids, _ = token_ids(folder, text)
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
    names = [("no", "yes", "so")[index] for index in scores.argmax(-1).tolist()]

    assert [row["entity"] for row in found] == names[1:-1]
    assert [text[row["start"] : row["end"]] for row in found] == text.split()
    assert [row["score"] for row in found] == pytest.approx(
        scores.max(-1).values.tolist()[1:-1], abs=CLOSE
    )


class TestBounds:
    """What is promised is served, one token more is refused."""

    def test_the_longest_text_is_served_and_one_more_is_refused(
        self, built: Built
    ) -> None:
        """The tokenizer's own cut and padding, of 8 here, are not in force."""
        engine = handler.Engine(built.roots["bert"])
        longest = "a " * 22  # and two special tokens

        assert len(engine.encode(longest)) == 24
        assert len(engine.generate(longest, {})) == 1
        with pytest.raises(handler.BoundExceeded, match=r"text 2 has 25 .*= 24"):
            engine.generate(["a", longest + "a"], {})

    def test_a_text_is_cut_only_when_asked(self, built: Built) -> None:
        """And then to the bound, its last special token kept."""
        engine = handler.Engine(built.roots["bert"])
        cut = engine.generate("a " * 99, {"truncate": True})

        assert cut == engine.generate("a " * 22, {})

    def test_more_texts_than_the_graph_takes_are_several_passes(
        self, built: Built
    ) -> None:
        """Every text has the answer that it has alone."""
        engine = handler.Engine(built.roots["bert"])
        texts = [f"{'a ' * (n % 7)}{n}" for n in range(10)]
        alone = [engine.generate(text, {})[0] for text in texts]

        assert np.abs(np.subtract(engine.generate(texts, {}), alone)).max() < CLOSE


class TestDriver:
    """What the driver refuses, and what it says."""

    def test_weights_that_are_not_there_are_refused(self, tmp_path: Path) -> None:
        """Its head would be filled with random numbers."""
        make_encoder(tmp_path / "m", "bert", head="ForSequenceClassification")
        document = asked(tmp_path / "m", recipe(BUCKETS))
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        make_encoder(tmp_path / "bare", "bert")
        (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
        done = run_driver({**document, "model": str(tmp_path / "bare")}, tmp_path / "w")

        assert [row["code"] for row in faults(done)] == ["neuronx.missing-weights"]
        assert done.returncode == 3

    def test_without_a_device_this_release_does_not_trace(self, tmp_path: Path) -> None:
        """The real function would end deep inside the runtime."""
        make_encoder(tmp_path / "m", sentence={"pooling": "cls", "normalize": True})
        document = asked(tmp_path / "m", recipe(BUCKETS), device=False)
        done = run_driver(document, tmp_path / "w")

        assert [row["code"] for row in faults(done)] == ["neuronx.no-device"]

    def test_words_that_the_compiler_does_not_know_end_the_build(
        self, tmp_path: Path
    ) -> None:
        """Nothing else checks them: the flags go to the compiler as they are."""
        make_encoder(tmp_path / "m", sentence={"pooling": "cls", "normalize": True})
        document = asked(tmp_path / "m", recipe(BUCKETS))
        for _, step in document["call"]["steps"]:
            step["compiler_args"].append("--autocast")
        done = run_driver(document, tmp_path / "w")

        assert done.returncode == 1
        assert "--autocast" in faults(done)[0]["message"]

    def test_the_record_says_what_was_compared(self, built: Built) -> None:
        """Each graph is tried with a text that fills it."""
        record = read_record(built.engine("bert"))
        rows = read_reference(built.engine("bert"))

        assert record["compared"]["rows"] == len(rows)
        assert record["compared"]["min_cosine"] > 1 - CLOSE
        assert {len(row["ids"]) for row in rows} >= {8, 24}


class TestChecks:
    """Every fault of a folder is found from its files."""

    def test_what_was_built_is_what_was_planned(self, built: Built) -> None:
        """By the checks of every loader and by those of encoders."""
        for name, (folder, wanted) in built.wanted.items():
            call = lower_trace(wanted, facts(folder), family="inf2")
            plan = compile_plan(
                call, RELEASE, num_cores=1, expected=trace_expected(call)
            )
            engine = built.engine(name)

            assert build_problems(engine, read_record(engine), plan) == ()
            assert encoder_problems(engine, folder, call.to_json()) == ()

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"pooling": ["cls"]}, r"pooling is \('cls',\)"),
            ({"normalize": False}, "normalize is False"),
            ({"batch_size": 4}, "batch_size is 4, planned was 3"),
            ({"graphs": {"8": "model.8.pt"}}, "planned|were to be made"),
            ({"compared": {"min_cosine": 0.5, "max_abs": 1.0}}, "cosine 0.5000"),
            ({"lower": True}, "lower is True"),
        ],
    )
    def test_a_record_of_something_else_is_found(
        self, built: Built, tmp_path: Path, change: dict[str, Any], match: str
    ) -> None:
        """Each of its values is held against the call and the model's files."""
        engine = shutil.copytree(built.engine("bert"), tmp_path / "engine")
        record = {**read_record(engine), **change}
        (engine / "neuron.json").write_text(json.dumps(record))
        found = encoder_problems(engine, built.wanted["bert"][0], built.call("bert"))

        assert len(found) == 1
        with pytest.raises(AssertionError, match=match):
            raise AssertionError(found[0])

    def test_a_damaged_graph_is_found_without_running_it(
        self, built: Built, tmp_path: Path
    ) -> None:
        """Loading it would run its code."""
        engine = shutil.copytree(built.engine("bert"), tmp_path / "engine")
        (engine / "model.8.pt").write_bytes(b"no archive")
        found = encoder_problems(engine, built.wanted["bert"][0], built.call("bert"))

        assert len(found) == 1
        assert "`model.8.pt` is no TorchScript" in found[0]

    @pytest.mark.parametrize("name", ["bert", "cls", "both", "own", "scores", "tokens"])
    def test_the_float_model_answers_here_as_it_did_at_the_build(
        self, built: Built, name: str
    ) -> None:
        """For each task and each pooling."""
        found = self.check(built, name)

        assert found["max_relative_difference"] < CLOSE

    def test_another_models_weights_are_found(
        self, built: Built, tmp_path: Path
    ) -> None:
        """The same sizes, other numbers."""
        wish = {"pooling": "mean", "normalize": True}
        make_encoder(tmp_path / "m", "bert", sentence=wish, seed=7)

        with pytest.raises(VerifyFailed, match="answers otherwise"):
            self.check(built, "bert", model=tmp_path / "m")

    def test_another_tokenizer_is_found(self, built: Built, tmp_path: Path) -> None:
        """One that tells capitals from small letters."""
        path = tmp_path / "tokenizer.json"
        text = (built.roots["bert"] / "tokenizer.json").read_text()
        path.write_text(text.replace('"lowercase":true', '"lowercase":false'))

        with pytest.raises(VerifyFailed, match="other ones"):
            self.check(built, "bert", tokenizer=path)

    def test_another_pooling_is_found(self, built: Built) -> None:
        """The same states, another vector."""
        with pytest.raises(VerifyFailed, match="answers otherwise"):
            self.check(built, "bert", pooling=["cls"])

    @staticmethod
    def check(
        built: Built,
        name: str,
        *,
        model: Path | None = None,
        tokenizer: Path | None = None,
        **change: Any,
    ) -> dict[str, Any]:
        """What verify finds, with some of its inputs replaced."""
        engine = built.engine(name)
        return check_reference(
            model or built.wanted[name][0],
            tokenizer or built.roots[name] / "tokenizer.json",
            {**read_record(engine), **change},
            read_reference(engine),
            call=built.call(name),
        )


class Output:
    """djl_python's answer, as far as the front end reads it."""

    def __init__(self) -> None:
        self.code = 200
        self.properties: dict[str, str] = {}
        self.content: list[tuple[str | None, str]] = []

    def add_property(self, key: str, value: str) -> Output:
        """Set a header."""
        self.properties[key] = value
        return self

    def add(
        self, value: str, key: str | None = None, batch_index: int | None = None
    ) -> Output:
        """Append a part, of one request of a batch where it is numbered."""
        name = key if batch_index is None else f"batch_{batch_index}.{key}"
        self.content.append((name, value))
        return self

    def error(self, error: str, code: int, message: str) -> Output:
        """Become an error."""
        self.code = code
        body = {"code": code, "message": message, "error": error}
        return self.add(json.dumps(body))


class Input:
    """One request, or several that the front end joined."""

    def __init__(self, root: Path, *bodies: bytes) -> None:
        self.root, self.bodies = str(root), bodies

    def get_property(self, key: str) -> str | None:
        """Of the whole request."""
        return self.root if key == "model_dir" else None

    def is_empty(self) -> bool:
        """Whether it has no body."""
        return not self.bodies

    def is_batch(self) -> bool:
        """Whether the front end joined several."""
        return len(self.bodies) > 1

    def get_batches(self) -> list[Input]:
        """One for each."""
        return [Input.__new__(Input)._of(body) for body in self.bodies]

    def _of(self, body: bytes) -> Input:
        self.root, self.bodies = "", (body,) if body else ()
        return self

    def get_as_json(self) -> Any:
        """The body."""
        return json.loads(self.bodies[0].decode())


class TestHandle:
    """The entry point, asked as DJL's Python process asks it."""

    @pytest.fixture(autouse=True)
    def _djl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = types.ModuleType("djl_python")
        monkeypatch.setattr(module, "Output", Output, raising=False)
        monkeypatch.setitem(sys.modules, "djl_python", module)

    def test_the_first_request_is_empty_and_loads_the_model(self, built: Built) -> None:
        """Its answer has no parts."""
        handler._ENGINES.clear()
        output = handler.handle(Input(built.roots["bert"]))

        assert output.content == []
        assert list(handler._ENGINES) == [str(built.roots["bert"])]

    @pytest.mark.parametrize(
        ("body", "code", "match"),
        [
            (b"{", 400, "not JSON"),
            (b"\xff", 400, "not JSON"),
            (b'{"inputs": 3}', 400, "must be a text"),
            (b'{"inputs": "a", "parameters": {"truncat": true}}', 400, "`truncate`"),
            (b'{"inputs": "' + b"a " * 30 + b'"}', 413, "max_input_len = 24"),
        ],
    )
    def test_what_is_wrong_has_its_status(
        self, built: Built, body: bytes, code: int, match: str
    ) -> None:
        """400 for what is not understood, 413 for what is too much."""
        output = handler.handle(Input(built.roots["bert"], body))

        assert output.code == code
        assert match in json.loads(output.content[0][1])["error"]

    def test_joined_requests_have_the_answers_that_they_have_alone(
        self, built: Built
    ) -> None:
        """One that is refused says so in its own body and spoils no other."""
        root = built.roots["bert"]
        bodies = [
            b'{"inputs": ["a fox", "one more word"]}',
            b'{"inputs": 3}',
            b'{"inputs": "' + b"a " * 30 + b'"}',
            b'{"inputs": "x"}',
        ]
        output = handler.handle(Input(root, *bodies))
        alone = [handler.handle(Input(root, body)) for body in (bodies[0], bodies[3])]
        found = [json.loads(text) for _, text in output.content]
        wanted = [json.loads(row.content[0][1]) for row in alone]

        assert output.code == 200
        assert [key for key, _ in output.content] == [
            f"batch_{index}.data" for index in range(4)
        ]
        assert [row.get("code") for row in found[1:3]] == [400, 413]
        assert np.abs(np.subtract(found[0], wanted[0])).max() < CLOSE
        assert np.abs(np.subtract(found[3], wanted[1])).max() < CLOSE
