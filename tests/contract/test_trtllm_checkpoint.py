"""A checkpoint read back by another reader is the model it was made of, bit for bit."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmi_build.backends.trtllm import block_writer, checkpoint_files
from lmi_build.backends.trtllm.checkpoint_ledger import LEDGER_NAME
from lmi_build.errors import LmiBuildError, SourceInvalid, Unsupported
from lmi_build.events import StageNote, StageProgress
from trtllm_models import MODELS, UNSTAGED, convert, make
from trtllm_reader import read_model

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.events import Event


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model as a Hugging Face folder."""
    root = tmp_path_factory.mktemp("sources")
    for name in MODELS:
        make(name, root / name)
    return root


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _check_same(source: Path, out: Path) -> None:
    """Every weight came back, in its own dtype or, of a router, in float32."""
    wanted, found = _weights(source), dict(read_model(out).tensors)
    config = json.loads((source / "config.json").read_text())
    if config.get("tie_word_embeddings"):
        head = found.pop("lm_head.weight")
        (table,) = [
            found[name]
            for name in found
            if name.endswith(("embed_tokens.weight", "wte.weight"))
        ]
        assert torch.equal(head, table)
    assert set(found) == set(wanted)
    for name, weight in wanted.items():
        # OPT counts positions from row 2 on; rows before are never read.
        first = 2 if name.endswith("embed_positions.weight") else 0
        got, sent = found[name][first:], weight[first:]
        assert torch.equal(got.to(torch.float32), sent.to(torch.float32)), name


@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("name", list(MODELS))
def test_read_back_is_the_model(
    sources: Path, tmp_path: Path, name: str, tp: int, pp: int
) -> None:
    if pp > 1 and name in UNSTAGED:
        with pytest.raises(Unsupported, match="no pipeline stages"):
            convert(sources / name, tmp_path / "out", tp=tp, pp=pp)
        return
    # Gemma's norms, one more than they were, keep all digits in float32 only.
    dtype = "float32" if name == "gemma" else "bfloat16"

    out = convert(sources / name, tmp_path / "out", tp=tp, pp=pp, dtype=dtype)

    _check_same(sources / name, out)


@pytest.mark.parametrize(("pp", "tp"), [(3, 1), (3, 2), (5, 1), (8, 1)])
def test_stages_need_not_be_equal(tmp_path: Path, tp: int, pp: int) -> None:
    """Eight layers over three stages are 3, 3 and 2; before 0.21 two were in none."""
    make("llama", tmp_path / "source", num_hidden_layers=8)

    out = convert(tmp_path / "source", tmp_path / "out", tp=tp, pp=pp, version="0.21.0")

    _check_same(tmp_path / "source", out)
    if 8 % pp:
        with pytest.raises(SourceInvalid, match=r"leave [23] of them out"):
            convert(tmp_path / "source", tmp_path / "older", tp=tp, pp=pp)
    with pytest.raises(SourceInvalid, match="more than the model's 8 layers"):
        convert(tmp_path / "source", tmp_path / "more", pp=9, version="0.21.0")


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_neox"])
def test_parts_of_rows_go_straight_to_their_places(
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *,
    kernel: bool,
) -> None:
    """As in models whose rows are wide; also where the kernel copies no rows."""
    monkeypatch.setattr(block_writer, "MIN_PIECE_BYTES", 1)
    monkeypatch.setattr(block_writer, "MAPPED_BYTES", 5000)
    monkeypatch.setattr(checkpoint_files, "_MAX_PIECES", 7)
    monkeypatch.setattr(checkpoint_files, "_FLUSH_BYTES", 10000)
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range")

    out = convert(sources / name, tmp_path / "out", tp=4)

    _check_same(sources / name, out)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numbers_are_converted_while_streaming(
    sources: Path, tmp_path: Path, dtype: str
) -> None:
    out = convert(sources / "gpt2", tmp_path / "out", dtype=dtype, tp=2)

    found = read_model(out).tensors
    for name, weight in _weights(sources / "gpt2").items():
        assert torch.equal(found[name], weight.to(getattr(torch, dtype))), name


@pytest.mark.parametrize("name", list(MODELS))
def test_more_ranks_hold_no_other_numbers(
    sources: Path, tmp_path: Path, name: str
) -> None:
    """Converted in the model's own dtype twice, files are the same bytes."""
    first = convert(sources / name, tmp_path / "first", tp=2)
    second = convert(sources / name, tmp_path / "second", tp=2)

    assert sorted(p.name for p in first.iterdir()) == [
        "config.json",
        "rank0.safetensors",
        "rank1.safetensors",
        LEDGER_NAME,
    ]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_ledger_knows_every_source(sources: Path, tmp_path: Path) -> None:
    """Each source tensor has a row, and each tensor of a rank is in one."""
    out = convert(sources / "mixtral", tmp_path / "out", tp=2, pp=2)

    rows = json.loads((out / LEDGER_NAME).read_text())["tensors"]
    assert [row["source"] for row in rows] == sorted(_weights(sources / "mixtral"))
    named: dict[int, set[str]] = {rank: set() for rank in range(4)}
    for row in rows:
        assert row["results"]
        for rank in row["ranks"]:
            named[rank].update(row["results"])
    for rank in range(4):
        assert set(load_file(out / f"rank{rank}.safetensors")) <= named[rank]


def test_progress_ends_with_all(sources: Path, tmp_path: Path) -> None:
    events: list[Event] = []

    convert(sources / "llama", tmp_path / "out", emit=events.append)

    steps = [event for event in events if isinstance(event, StageProgress)]
    assert [step.done for step in steps] == list(range(1, steps[-1].total + 1))


def test_window_is_told(sources: Path, tmp_path: Path) -> None:
    events: list[Event] = []

    convert(sources / "mistral", tmp_path / "out", emit=events.append)

    (note,) = [event for event in events if isinstance(event, StageNote)]
    assert note.code == "trtllm.attention-window"
    assert "21" in note.message


def _rewrite(source: Path, folder: Path, **config: Any) -> Path:
    """The model with other entries in its config.json."""
    folder.mkdir()
    document = json.loads((source / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "config", "code"),
    [
        ("llama", {"architectures": ["RwkvForCausalLM"]}, "trtllm.architecture"),
        ("llama", {"architectures": ["PhiForCausalLM"]}, "trtllm.no-writer"),
        ("llama", {"num_hidden_layers": 5}, "trtllm.missing-tensor"),
        ("llama", {"num_hidden_layers": 3}, "trtllm.unexpected-tensor"),
        ("llama", {"intermediate_size": 176}, "trtllm.wrong-shape"),
        ("llama", {"vocab_size": 330}, "trtllm.wrong-shape"),
        ("llama", {"hidden_act": "mish"}, "trtllm.unlike"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "trtllm.unlike"),
        ("gpt_neox", {"use_parallel_residual": False}, "trtllm.unlike"),
        ("gpt_neox", {"layer_norm_eps": 1e-6}, "trtllm.unlike"),
        ("opt", {"word_embed_proj_dim": 48}, "trtllm.unlike"),
        ("opt", {"do_layer_norm_before": False}, "trtllm.unlike"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "trtllm.unlike"),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 1},
            "trtllm.unlike",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    sources: Path, tmp_path: Path, name: str, config: dict[str, Any], code: str
) -> None:
    """Nothing is written for a model that the class would compute otherwise."""
    source = _rewrite(sources / name, tmp_path / "source", **config)

    with pytest.raises(LmiBuildError) as caught:
        convert(source, tmp_path / "out")

    assert caught.value.code == code
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tp", "pp", "message", "hint"),
    [
        ("llama", 3, 1, "attention heads: 8", "set it to 2"),
        ("llama", 16, 1, "attention heads: 8", "set it to 8"),
        (
            "llama",
            1,
            3,
            "4 layers",
            "set it to 2, or choose a release with TensorRT-LLM 0.21 or later",
        ),
        ("llama", 1, 8, "4 layers", "set it to 4"),
        ("gemma", 8, 1, "vocabulary: 324", "set it to 4"),
    ],
)
def test_ranks_that_do_not_divide_are_refused(
    sources: Path, tmp_path: Path, name: str, tp: int, pp: int, message: str, hint: str
) -> None:
    with pytest.raises(LmiBuildError) as caught:
        convert(sources / name, tmp_path / "out", tp=tp, pp=pp)

    assert message in caught.value.message
    assert caught.value.hints == (hint,)


def test_weights_beyond_float16_are_refused(sources: Path, tmp_path: Path) -> None:
    weights = _weights(sources / "llama")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 70000.0
    source = tmp_path / "source"
    source.mkdir()
    save_file(weights, source / "model.safetensors")
    (source / "config.json").write_bytes((sources / "llama/config.json").read_bytes())

    with pytest.raises(Unsupported, match=r"up_proj.weight.*70144.*65504"):
        convert(source, tmp_path / "out", dtype="float16")

    assert not list((tmp_path / "out").glob("rank*.safetensors"))


def test_a_source_that_shrinks_is_found(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is cut between the header's check and the reading of its end."""
    source = tmp_path / "source"
    source.mkdir()
    data = (sources / "llama/model.safetensors").read_bytes()
    path = source / "model.safetensors"
    path.write_bytes(data)
    (source / "config.json").write_bytes((sources / "llama/config.json").read_bytes())
    (length,) = struct.unpack("<Q", data[:8])

    copy = os.copy_file_range

    def cut_first(*arguments: Any, **named: Any) -> int:
        os.truncate(path, 8 + length + 100)
        return copy(*arguments, **named)

    monkeypatch.setattr(os, "copy_file_range", cut_first)
    with pytest.raises(SourceInvalid) as caught:
        convert(source, tmp_path / "out")

    assert caught.value.code == "checkpoint.truncated"
