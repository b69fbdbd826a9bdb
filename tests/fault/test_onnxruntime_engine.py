"""Broken checkpoints and engines are errors with a name, never wrong answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

from autogptq import quantize_folder  # noqa: E402
from lmi_build.backends import onnxruntime_builder, onnxruntime_worker  # noqa: E402
from lmi_build.errors import (  # noqa: E402
    LmiBuildError,
    SourceInvalid,
    StageFailed,
    Unsupported,
)
from lmi_build.package.handlers import generation  # noqa: E402
from make_tiny_model import make_tiny_model  # noqa: E402
from onnxruntime_engines import compile_engine, load_engine  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with tied embeddings in bfloat16."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def _cut(name: str, count: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:count])

    return damage


def _edit_config(key: str, value: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_bytes())
        config["quantization_config"][key] = value
        path.write_text(json.dumps(config))

    return damage


def _edit_tensors(
    change: Callable[[dict[str, Tensor]], None],
) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def _drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def _add(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: torch.zeros(3)})


QPROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("damage", "kind", "code"),
    [
        (_cut("model.safetensors", 1000), SourceInvalid, "compile.checkpoint-broken"),
        (_cut("model.safetensors", 0), SourceInvalid, "compile.checkpoint-broken"),
        (_cut("config.json", 20), SourceInvalid, "compile.checkpoint-broken"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            SourceInvalid,
            "compile.checkpoint-broken",
        ),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            SourceInvalid,
            "compile.tokenizer-missing",
        ),
        (_cut("tokenizer.json", 99), SourceInvalid, "compile.checkpoint-broken"),
        (
            lambda folder: (folder / "tokenizer.json").write_text(
                '{"decoder": {"type": "WordPiece"}}'
            ),
            Unsupported,
            "compile.tokenizer-unsupported",
        ),
        (
            _edit_tensors(_drop(f"{QPROJ}.scales")),
            SourceInvalid,
            "checkpoint.format",
        ),
        (
            _edit_tensors(_drop("model.norm.weight")),
            SourceInvalid,
            "compile.tensor-missing",
        ),
        (
            _edit_tensors(_drop("model.embed_tokens.weight")),
            SourceInvalid,
            "compile.tensor-missing",
        ),
        (
            _edit_tensors(_add(f"{QPROJ}.lora_a")),
            Unsupported,
            "compile.unknown-tensor",
        ),
        (
            _edit_tensors(_add("model.layers.0.mlp.extra.weight")),
            Unsupported,
            "compile.unknown-tensor",
        ),
        (_edit_config("bits", 3), SourceInvalid, "checkpoint.format"),
        (_edit_config("group_size", 64), SourceInvalid, "checkpoint.format"),
        (_edit_config("quant_method", "hqq"), Unsupported, "checkpoint.scheme"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    tmp_path: Path,
    tiny: Path,
    damage: Callable[[Path], None],
    kind: type[LmiBuildError],
    code: str,
) -> None:
    """Whatever is wrong with a checkpoint, the error has its code and a way out."""
    quantize_folder(tiny, tmp_path / "checkpoint")
    damage(tmp_path / "checkpoint")
    with pytest.raises(kind) as caught:
        compile_engine(tmp_path / "checkpoint", tmp_path / "job")

    assert caught.value.code == code
    assert caught.value.hints


@pytest.mark.parametrize("name", onnxruntime_worker.ENGINE_FILES)
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_cut_engine_does_not_load(
    tmp_path: Path, tiny: Path, name: str, share: float
) -> None:
    """A file that is cut short is an error at load, not wrong answers."""
    out, _ = compile_engine(tiny, tmp_path / "job")
    path = out / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    with pytest.raises(generation.EngineBroken):
        load_engine(out)


def test_the_builders_own_failure_is_told(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the builder raises comes out with its words and a code."""
    builder = onnxruntime_builder.import_builder()

    def broken(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(builder.Model, "make_genai_config", broken)
    with pytest.raises(StageFailed, match="no such operator") as caught:
        compile_engine(tiny, tmp_path / "job")

    assert caught.value.code == "compile.builder-failed"


def test_another_builder_is_refused(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder without the methods we replace is not used half-way."""
    builder = onnxruntime_builder.import_builder()
    before = builder.Model.make_model
    monkeypatch.delattr(builder.Model, "to_nbits")
    with pytest.raises(StageFailed, match=r"`Model\.to_nbits`") as caught:
        compile_engine(tiny, tmp_path / "job")

    assert caught.value.code == "compile.builder-changed"
    assert builder.Model.make_model is before
