"""Engines built from small models say what the checkpoint says."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

from lmi_build.backends import onnxruntime_worker  # noqa: E402
from lmi_build.digest import digest_file  # noqa: E402
from lmi_build.errors import LmiBuildError, SourceInvalid, Unsupported  # noqa: E402
from lmi_build.events import StageNote, StageProgress  # noqa: E402
from lmi_build.package.handlers import onnxruntime_genai as handler  # noqa: E402
from lmi_build.spi import Job  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmi_build.events import Event

ROOT = Path(__file__).parents[2]
BOUNDS = {
    "max_input_len": 24,
    "max_output_len": 16,
    "max_seq_len": 40,
    "max_batch_size": 2,
}
# Exact products in float32; an error beyond rounding would be a wrong weight.
EXACT = {"accuracy_level": 0, "lm_head_dtype": "float32"}
RELATIVE_ERROR = 2e-6


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


AUTOGPTQ = _load(ROOT / "tests" / "fixtures" / "autogptq.py")
TINY = _load(ROOT / "scripts" / "make_tiny_model.py")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker sets these for its own process; give them back."""
    for name in onnxruntime_worker.OFFLINE:
        monkeypatch.setenv(name, "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with tied embeddings in bfloat16."""
    folder: Path = TINY.make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    return folder


def compile_engine(
    checkpoint: Path, place: Path, **params: Any
) -> tuple[Path, list[Event]]:
    """Run the worker as the executor would; returns the engine and its events."""
    out, state = place / "engine", place / "state"
    out.mkdir(parents=True)
    state.mkdir()
    packing = "gptq" if checkpoint.name == "checkpoint" else "none"
    events: list[Event] = []
    job = Job(
        stage="t/compile",
        params={
            "accuracy_level": 4,
            "block_size": 32,
            "intra_op_num_threads": 1,
            "lm_head_dtype": "int8",
            "max_seq_len": BOUNDS["max_seq_len"],
            "num_layers": 2,
            "qkv_accuracy_level": 1,
            "packing": packing,
            **params,
        },
        inputs={"checkpoint": checkpoint},
        out=out,
        state=state,
    )
    onnxruntime_worker.run(job, events.append)
    return out, events


def load_engine(engine: Path) -> handler.Engine:
    """The engine as the artifact's handler loads it."""
    settings = {"engine_dir": engine.name, "bounds": BOUNDS}
    (engine.parent / handler.SETTINGS_NAME).write_text(json.dumps(settings))
    return handler.Engine(engine.parent)


def reference(model: Path, dense: dict[str, Tensor] | None = None) -> Any:
    """The model in float32, with some layers replaced."""
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    modules = dict(net.named_modules())
    for name, weight in (dense or {}).items():
        modules[name].weight.data = weight
    return net.eval()


def relative_error(net: Any, engine: handler.Engine, ids: Sequence[int]) -> float:
    """Largest difference of any logit, over the largest logit."""
    with torch.inference_mode():
        wanted = net(torch.tensor([list(ids)])).logits[0].numpy()
    found = engine.logits(ids)

    assert wanted.shape == found.shape
    assert found.dtype == np.float32
    return float(np.abs(wanted - found).max() / np.abs(wanted).max())


def greedy(net: Any, ids: Sequence[int], count: int) -> list[int]:
    """What transformers answers, token by token."""
    out = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            out.append(int(net(torch.tensor([out])).logits[0, -1].argmax()))
    return out[len(ids) :]


IDS = [5, 17, 300, 42, 7, 9, 411, 23, 250, 99, 12, 3, 77]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_float_engine_is_the_model(
    tmp_path: Path, *, architecture: str, tied: bool
) -> None:
    """Logits agree to rounding, greedy tokens are the same."""
    model = TINY.make_tiny_model(
        tmp_path / "model", architecture=architecture, tie_word_embeddings=tied
    )
    out, _ = compile_engine(model, tmp_path / "job", **EXACT)
    net, engine = reference(model), load_engine(out)

    assert relative_error(net, engine, IDS) < RELATIVE_ERROR
    steps = list(engine.stream(IDS, {"max_new_tokens": 12}))
    assert greedy(net, IDS, len(steps)) == [step.token_id for step in steps]


@pytest.mark.parametrize(
    "scheme",
    [
        {"group_size": 32},
        {"group_size": 64, "sym": False},
        {"group_size": 16},
        {"group_size": -1},
        {"group_size": 32, "act_order": True},
        {"bits": 8, "group_size": -1},
        {"bits": 8, "group_size": 32, "sym": False, "act_order": True},
        {"ignore": ("layers.0.self_attn.k_proj", "layers.1.mlp.down_proj")},
        {"ignore": ("layers.0.self_attn.q_proj", "k_proj", "v_proj")},
    ],
    ids=str,
)
def test_a_quantized_checkpoint_is_taken_exactly(
    tmp_path: Path, tiny: Path, scheme: dict[str, Any]
) -> None:
    """The engine computes with the values that the checkpoint dequantizes to."""
    dense = AUTOGPTQ.quantize_folder(tiny, tmp_path / "checkpoint", **scheme)
    out, _ = compile_engine(tmp_path / "checkpoint", tmp_path / "job", **EXACT)

    error = relative_error(reference(tiny, dense), load_engine(out), IDS)
    assert error < RELATIVE_ERROR


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3", "smollm3"])
def test_other_architectures_take_packed_weights(
    tmp_path: Path, architecture: str
) -> None:
    """What the provider lists as supported with packed weights is."""
    model = make_model(tmp_path / "model", architecture)
    dense = AUTOGPTQ.quantize_folder(model, tmp_path / "checkpoint")
    out, _ = compile_engine(tmp_path / "checkpoint", tmp_path / "job", **EXACT)

    assert relative_error(reference(model, dense), load_engine(out), IDS) < 4e-6


def make_model(out: Path, architecture: str) -> Path:
    """A small model; newer architectures are made by transformers itself."""
    if architecture in TINY.ARCHITECTURES:
        model: Path = TINY.make_tiny_model(out, architecture=architecture)
        return model
    import transformers

    TINY.make_tiny_model(out)
    config = transformers.AutoConfig.for_model(
        architecture,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in net.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    net.save_pretrained(out)
    return out


def test_the_weights_in_the_file_are_the_checkpoints(
    tmp_path: Path, tiny: Path
) -> None:
    """Read back from the engine's bytes, every integer and scale is the same."""
    import onnx
    from onnx import numpy_helper

    dense = AUTOGPTQ.quantize_folder(tiny, tmp_path / "checkpoint", group_size=64)
    out, _ = compile_engine(tmp_path / "checkpoint", tmp_path / "job")
    model = onnx.load(out / "model.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for index in range(2):
        name = f"model.layers.{index}.mlp.down_proj"
        blocks = tensors[f"{name}.MatMulNBits.qweight"]
        scales = tensors[f"{name}.MatMulNBits.scales"].reshape(64, -1, 1)
        levels = np.stack((blocks & 0xF, blocks >> 4), -1).reshape(64, -1, 32)
        found = ((levels.astype(np.float32) - 8) * scales).reshape(64, 128)

        assert np.array_equal(dense[name].numpy(), found)


def test_the_embedding_is_kept_in_16_bits_when_that_is_exact(
    tmp_path: Path, tiny: Path
) -> None:
    """A bfloat16 table stays one; a float32 one that would change does not."""
    import onnx

    wide = TINY.make_tiny_model(tmp_path / "wide", dtype="float32")
    found = []
    for name, model in (("narrow", tiny), ("wide", wide)):
        out, _ = compile_engine(model, tmp_path / name, **EXACT)
        graph = onnx.load(out / "model.onnx", load_external_data=False).graph
        found += [t for t in graph.initializer if t.name.startswith("model.embed")]

    assert [t.data_type for t in found] == [
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.FLOAT,
    ]


def test_two_builds_give_the_same_bytes(tmp_path: Path, tiny: Path) -> None:
    """The engine is a function of checkpoint and parameters, not of place or time."""
    AUTOGPTQ.quantize_folder(tiny, tmp_path / "checkpoint")
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "elsewhere" / "checkpoint")
    digests = []
    for place in (tmp_path, tmp_path / "elsewhere"):
        out, _ = compile_engine(place / "checkpoint", place / "job")
        digests.append({p.name: digest_file(p) for p in sorted(out.iterdir())})

    assert digests[0] == digests[1]
    assert set(onnxruntime_worker.ENGINE_FILES) <= set(digests[0])


def test_bounds_stand_in_the_configuration(tmp_path: Path, tiny: Path) -> None:
    """No longer sequence than the recipe's can be held, with one beam."""
    out, _ = compile_engine(tiny, tmp_path / "job", intra_op_num_threads=3)
    config = json.loads((out / "genai_config.json").read_bytes())

    assert config["model"]["context_length"] == 40
    assert config["search"]["max_length"] == 40
    assert config["search"]["num_beams"] == 1
    assert config["search"]["past_present_share_buffer"] is True
    session = config["model"]["decoder"]["session_options"]
    assert session["intra_op_num_threads"] == 3


def test_an_int8_head_is_close_and_recorded(tmp_path: Path, tiny: Path) -> None:
    """The 8-bit head changes logits by less than one percent; float does not."""
    net = reference(tiny)
    out, _ = compile_engine(tiny, tmp_path / "int8", lm_head_dtype="int8")
    error = relative_error(net, load_engine(out), IDS)

    assert RELATIVE_ERROR < error < 0.02


def test_progress_counts_layers(tmp_path: Path, tiny: Path) -> None:
    """Each decoder block is reported once, with the known total."""
    _, events = compile_engine(tiny, tmp_path / "job")
    progress = [event for event in events if isinstance(event, StageProgress)]

    assert [(event.done, event.total) for event in progress] == [(1, 2), (2, 2)]
    assert {event.unit for event in progress} == {"layers"}


def test_an_act_order_checkpoint_is_noted(tmp_path: Path, tiny: Path) -> None:
    """Reordered inputs cost time while serving, so the user hears of them."""
    AUTOGPTQ.quantize_folder(tiny, tmp_path / "checkpoint", act_order=True)
    _, events = compile_engine(tmp_path / "checkpoint", tmp_path / "job")
    notes = [event.code for event in events if isinstance(event, StageNote)]

    assert "compile.activation-order" in notes


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
            "compile.tensor-missing",
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
        (_edit_config("bits", 3), Unsupported, "compile.weights-refused"),
        (_edit_config("group_size", 64), Unsupported, "compile.weights-refused"),
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
    AUTOGPTQ.quantize_folder(tiny, tmp_path / "checkpoint")
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

    with pytest.raises(handler.EngineBroken):
        load_engine(out)
