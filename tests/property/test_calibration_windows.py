"""Laws of packing text into calibration windows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from calibration_data import bring, pinned
from lmi_build.errors import SourceInvalid
from lmi_build.events import StageNote, ignore
from lmi_build.quantizers import calibration_windows
from lmi_build.quantizers.calibration import (
    builtin_texts,
    calibration_params,
    calibration_settings,
    load_tokenizer,
)
from lmi_build.quantizers.calibration_windows import (
    Marks,
    pack,
    read_windows,
    sequence_marks,
    tokenize,
)
from lmi_build.spi import Job
from lmi_build.values.recipe import CalibrationSpec
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.events import Event

BOS, EOS = 0, 1
WORDS = [f"w{i}" for i in range(50)]


def word_tokenizer(*, template: str = "$A", limit: int = 0) -> Tokenizer:
    """A tokenizer of whole words, whose sequences look like `template`."""
    vocabulary = {"<s>": BOS, "</s>": EOS, "<unk>": 2, "a": 3}
    vocabulary |= {word: 4 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    if limit:
        tokenizer.enable_truncation(limit)
        tokenizer.enable_padding(length=limit)
    return tokenizer


def write_model(folder: Path, *, config: Any = None, **how: Any) -> Path:
    """A model folder that is a tokenizer and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    word_tokenizer(**how).save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def windows_of(
    model: Path, spec: CalibrationSpec, root: Path, told: list[Event] | None = None
) -> list[list[int]]:
    """The windows a worker would calibrate on."""
    spec = pinned(spec, root)
    inputs = {"model": model}
    if spec.facts is not None:
        inputs["calibration"] = bring(spec.facts, root)
    job = Job(
        stage="tiny/quantize",
        params={"calibration": calibration_params(spec)},
        inputs=inputs,
        out=root,
        state=root,
        settings=calibration_settings(spec),
    )
    return read_windows(job, (told if told is not None else []).append)


STREAMS = st.lists(st.integers(3, 99), max_size=300)
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(0, 9))


@given(stream=STREAMS, shape=SHAPES)
def test_windows_are_disjoint_pieces_in_the_order_of_the_text(
    stream: list[int], shape: tuple[int, int, int]
) -> None:
    """Without a start token every window is a whole piece of the stream."""
    count, length, seed = shape
    numbered = list(range(len(stream)))
    if len(stream) // length < count:
        with pytest.raises(SourceInvalid) as caught:
            pack(numbered, num_samples=count, max_seq_len=length, seed=seed)
        assert caught.value.code == "calibration.too-short"
        return

    windows = pack(numbered, num_samples=count, max_seq_len=length, seed=seed)

    assert len(windows) == count
    assert all(w == list(range(w[0], w[0] + length)) for w in windows)
    assert all(w[0] % length == 0 for w in windows)
    assert [w[0] for w in windows] == sorted({w[0] for w in windows})
    assert windows == pack(numbered, num_samples=count, max_seq_len=length, seed=seed)


@given(
    documents=st.lists(st.lists(st.integers(3, 99), min_size=1, max_size=30)),
    shape=SHAPES,
)
def test_every_window_starts_as_a_sequence_does(
    documents: list[list[int]], shape: tuple[int, int, int]
) -> None:
    """With a start token: once at the start, never twice in a row, text untouched."""
    count, length, seed = shape
    stream = [token for document in documents for token in (BOS, *document)]
    draw: Any = {"num_samples": count, "max_seq_len": length, "seed": seed}
    if length == 1 or len(stream) < count * (length - 1) + 1:
        with pytest.raises(SourceInvalid) as caught:
            pack(stream, **draw, before=[BOS])
        assert caught.value.code == "calibration.too-short"
        return
    windows = pack(stream, **draw, before=[BOS])

    text = "," + ",".join(map(str, stream)) + ","
    for window in windows:
        assert len(window) == length
        assert window[0] == BOS
        assert window[1] != BOS
        assert "," + ",".join(map(str, window[1:])) + "," in text


def test_the_seed_changes_the_draw() -> None:
    """Another seed, other windows."""
    stream = list(range(1000))
    draws = [pack(stream, num_samples=5, max_seq_len=20, seed=seed) for seed in (1, 2)]

    assert draws[0] != draws[1]


def test_too_little_text_says_both_numbers() -> None:
    """Needed and present tokens are in the message, and what would fit."""
    with pytest.raises(SourceInvalid) as caught:
        pack(list(range(100)), num_samples=4, max_seq_len=32, seed=0)

    assert caught.value.code == "calibration.too-short"
    assert "128 tokens, the data set has 100" in caught.value.message
    assert caught.value.hints[0].endswith("to 3")
    assert caught.value.hints[1].endswith("to 25")


def test_a_window_needs_room_for_text() -> None:
    """One token, which the model's start takes, is refused."""
    with pytest.raises(SourceInvalid) as caught:
        pack([BOS, 5, 6], num_samples=1, max_seq_len=1, seed=0, before=[BOS])

    assert "512" in caught.value.hints[0]


@pytest.mark.parametrize(
    ("template", "config", "marks"),
    [
        ("$A", None, Marks()),
        ("<s> $A", None, Marks(before=(BOS,))),
        ("<s> $A", {"bos_token": "<s>"}, Marks(before=(BOS,))),
        ("$A </s>", None, Marks(after=(EOS,))),
        ("<s> $A </s>", {}, Marks(before=(BOS,), after=(EOS,))),
        ("$A", {"add_bos_token": True, "bos_token": "<s>"}, Marks(before=(BOS,))),
        (
            "$A",
            {"add_bos_token": True, "bos_token": {"content": "<s>"}},
            Marks(before=(BOS,)),
        ),
        ("<s> $A", {"add_bos_token": False, "bos_token": "<s>"}, Marks()),
        ("$A", {"add_bos_token": True, "bos_token": None}, Marks()),
    ],
)
def test_marks_are_those_of_the_tokenizer(
    template: str, config: Any, marks: Marks, tmp_path: Path
) -> None:
    """The post-processor says them, an explicit setting wins."""
    model = write_model(tmp_path, template=template, config=config)

    assert sequence_marks(load_tokenizer(model), model) == marks


def test_a_broken_tokenizer_config_is_named(tmp_path: Path) -> None:
    """What cannot be read is not guessed."""
    model = write_model(tmp_path)
    (model / "tokenizer_config.json").write_text("{")

    with pytest.raises(SourceInvalid) as caught:
        sequence_marks(load_tokenizer(model), model)

    assert caught.value.code == "calibration.tokenizer"


def test_limits_of_a_training_run_are_lifted(tmp_path: Path) -> None:
    """Truncation and padding that a file carries would eat the text."""
    tokenizer = load_tokenizer(write_model(tmp_path, limit=4))

    assert len(tokenizer.encode("w1 " * 9).ids) == 9
    assert len(tokenizer.encode("w1").ids) == 1


def test_no_more_is_read_than_needed(tmp_path: Path) -> None:
    """The stream is cut at its bound, and the document after it is never asked for."""

    def texts() -> Any:
        yield "w1 w2 w3"
        yield "w4 w5 w6"
        raise AssertionError

    stream = tokenize(texts(), word_tokenizer(), Marks(before=(BOS,)), num_tokens=5)

    assert list(stream) == [BOS, 5, 6, 7, BOS]


def test_a_pool_bounds_the_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the pool nothing is drawn, and the build says so."""
    monkeypatch.setattr(calibration_windows, "_POOL_TOKENS", 64)
    (tmp_path / "x.txt").write_text(" ".join(WORDS * 20))
    spec = CalibrationSpec(dataset="x.txt", num_samples=2, max_seq_len=8)
    told: list[Event] = []

    windows = windows_of(write_model(tmp_path / "m"), spec, tmp_path, told)

    (note,) = told
    assert isinstance(note, StageNote)
    assert (note.code, note.level) == ("calibration.pool", "info")
    assert "128 tokens" in note.message
    stream = [4 + i % len(WORDS) for i in range(128)]
    pieces = [stream[at : at + 8] for at in range(0, 128, 8)]
    assert all(window in pieces for window in windows)


def test_rows_left_out_are_told(tmp_path: Path) -> None:
    """Empty rows are a warning; a data set of nothing else is an error."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": null}\n{"text": "w1 w2 w3 w4"}')
    model = write_model(tmp_path / "m")
    spec = CalibrationSpec(dataset="x.jsonl", num_samples=1, max_seq_len=4)
    told: list[Event] = []

    assert windows_of(model, spec, tmp_path, told) == [[5, 6, 7, 8]]
    assert [getattr(event, "code", "") for event in told] == ["calibration.empty-rows"]

    path.write_text('{"text": null}\n')
    with pytest.raises(SourceInvalid) as caught:
        windows_of(model, replace(spec, dataset="../x.jsonl"), _sub(tmp_path))
    assert caught.value.code == "calibration.empty"


def _sub(folder: Path) -> Path:
    (folder / "again").mkdir()
    return folder / "again"


def test_messages_name_the_users_file(tmp_path: Path) -> None:
    """Not the name under which the store keeps it."""
    (tmp_path / "mine.jsonl").write_text("{}")
    spec = CalibrationSpec(dataset="mine.jsonl")

    with pytest.raises(SourceInvalid, match=r"mine\.jsonl:1"):
        windows_of(write_model(tmp_path / "m"), spec, tmp_path)


def test_a_rendered_chat_gets_no_second_start(tmp_path: Path) -> None:
    """The template writes the special tokens; the tokenizer adds none."""
    model = make_tiny_model(tmp_path / "m")
    row = {"messages": [{"role": "user", "content": "one two three"}]}
    (tmp_path / "x.jsonl").write_text("\n".join([json.dumps(row)] * 30))
    spec = CalibrationSpec(
        dataset="x.jsonl", num_samples=2, max_seq_len=16, chat_template=True
    )

    windows = windows_of(model, spec, tmp_path)

    shown = load_tokenizer(model).decode(windows[0], skip_special_tokens=False)
    assert "<|im_start|>user" in shown
    assert "<|im_start|><|im_start|>" not in shown


def test_a_template_that_refuses_is_told(tmp_path: Path) -> None:
    """A role that the model does not know: the roles and the template's own words."""
    model = make_tiny_model(tmp_path / "m")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ raise_exception('System role not supported') }}"
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    row = {"messages": [{"role": "system", "content": "one"}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    spec = CalibrationSpec(dataset="x.jsonl", chat_template=True)

    with pytest.raises(SourceInvalid) as caught:
        windows_of(model, spec, tmp_path)

    assert caught.value.code == "calibration.chat-template"
    assert "system" in caught.value.message
    assert "System role not supported" in caught.value.message


def test_the_built_in_text_is_drawn_as_it_always_was(tmp_path: Path) -> None:
    """A model without a start token sees plain pieces of the joined topics."""
    model = make_tiny_model(tmp_path / "m")
    tokenizer = load_tokenizer(model)
    stream = [t for x in builtin_texts(held_out=False) for t in tokenizer.encode(x).ids]

    windows = windows_of(
        model, CalibrationSpec(num_samples=3, max_seq_len=32), tmp_path
    )

    assert windows == pack(stream, num_samples=3, max_seq_len=32, seed=0)


def test_another_built_in_text_is_refused(tmp_path: Path) -> None:
    """Python's own text differs between its releases; the plan named one."""
    params = {**calibration_params(CalibrationSpec()), "digest": "sha256:" + "0" * 64}
    job = Job(
        stage="x",
        params={"calibration": params},
        inputs={"model": write_model(tmp_path)},
        out=tmp_path,
        state=tmp_path,
    )

    with pytest.raises(SourceInvalid) as caught:
        read_windows(job, ignore)

    assert caught.value.code == "calibration.moved"
