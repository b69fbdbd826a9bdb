"""Laws of the fetch stage for models on this machine."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmi_build.checkpoint.header import read_header
from lmi_build.errors import DoesNotFit, LmiBuildError
from lmi_build.events import Event, StageProgress, ignore
from lmi_build.sources.cast import cast_bytes
from lmi_build.sources.copy_files import disk_errors
from lmi_build.sources.fetch import run
from lmi_build.sources.gguf_convert import convert_gguf
from lmi_build.sources.resolve import (
    fetch_settings,
    fetch_stage_params,
    resolve_model,
)
from lmi_build.spi import Job
from lmi_build.values.recipe import ModelSpec
from lmi_build.values.settings import Settings
from tiny_models import (
    METADATA,
    SHAPES,
    TOKENS,
    gguf,
    hf_files,
    safetensors,
    sentence_files,
)

Fetch = Callable[..., Path]


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Job]:
    def make(source: Path, **wishes: Any) -> Job:
        spec = ModelSpec(source=str(source), **wishes)
        settings = Settings(cache_dir=tmp_path / "cache")
        facts = resolve_model(spec, settings=settings, base=tmp_path)
        number = len(list(tmp_path.glob("out*")))
        out, state = tmp_path / f"out{number}", tmp_path / "state"
        out.mkdir()
        state.mkdir(exist_ok=True)
        return Job(
            stage="tiny/fetch",
            params=fetch_stage_params(facts, spec),
            inputs={},
            out=out,
            state=state,
            settings=fetch_settings(facts, settings),
        )

    return make


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def floats(path: Path, name: str) -> list[float]:
    entry = read_header(path).tensors[name]
    raw = path.read_bytes()[entry.begin : entry.end]
    wide = cast_bytes(raw, source=entry.dtype, target="float32")
    return list(struct.unpack(f"<{len(wide) // 4}f", wide))


def test_a_folder_arrives_byte_for_byte_without_what_is_not_needed(
    tmp_path: Path, plan: Callable[..., Job]
) -> None:
    files = hf_files()
    job = plan(write(tmp_path / "m", files))
    run(job, ignore)
    found = {p.name: p.read_bytes() for p in job.out.iterdir()}

    assert found == {n: d for n, d in files.items() if n in found}
    assert "training.log" not in found
    assert len(found) == 6


def test_the_result_shares_no_inode_with_the_users_folder(
    tmp_path: Path, plan: Callable[..., Job]
) -> None:
    root = write(tmp_path / "m", hf_files())
    job = plan(root)
    run(job, ignore)
    (root / "LICENSE").write_bytes(b"changed later")

    assert (job.out / "LICENSE").read_bytes() == hf_files()["LICENSE"]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_file_that_changed_since_the_plan_is_refused(
    dtype: str, tmp_path: Path, plan: Callable[..., Job]
) -> None:
    root = write(tmp_path / "m", hf_files())
    job = plan(root, dtype=dtype)
    data = bytearray((root / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (root / "model.safetensors").write_bytes(data)
    with pytest.raises(LmiBuildError) as caught:
        run(job, ignore)

    assert caught.value.code == "source.changed"


def test_a_file_that_vanished_since_the_plan_is_named(
    tmp_path: Path, plan: Callable[..., Job]
) -> None:
    root = write(tmp_path / "m", hf_files())
    job = plan(root)
    (root / "LICENSE").unlink()
    with pytest.raises(LmiBuildError, match="LICENSE") as caught:
        run(job, ignore)

    assert caught.value.code == "source.unreadable"


def test_a_full_disk_is_called_by_its_name() -> None:
    with pytest.raises(DoesNotFit) as caught, disk_errors("the model"):
        raise OSError(28, "No space left on device")

    assert caught.value.code == "source.disk-full"


def test_progress_ends_at_a_total_that_never_changes(
    tmp_path: Path, plan: Callable[..., Job]
) -> None:
    events: list[Event] = []
    run(plan(write(tmp_path / "m", hf_files())), events.append)
    steps = [event for event in events if isinstance(event, StageProgress)]

    assert steps[-1].done == steps[-1].total
    assert len({step.total for step in steps}) == 1
    assert [step.done for step in steps] == sorted(step.done for step in steps)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_cast_changes_weights_and_says_so_in_the_configuration(
    dtype: str, tmp_path: Path, plan: Callable[..., Job]
) -> None:
    files = hf_files()
    index = {
        "metadata": {"total_size": 1},
        "weight_map": dict.fromkeys(SHAPES, "model.safetensors"),
    }
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    job = plan(write(tmp_path / "m", files), dtype=dtype)
    run(job, ignore)
    header = read_header(job.out / "model.safetensors")
    config = json.loads((job.out / "config.json").read_text())
    written = json.loads((job.out / "model.safetensors.index.json").read_text())

    assert {entry.dtype for entry in header.tensors.values()} == {dtype}
    assert config["torch_dtype"] == dtype
    assert written["metadata"]["total_size"] == sum(
        entry.num_bytes for entry in header.tensors.values()
    )
    assert floats(job.out / "model.safetensors", "model.norm.weight") == [
        i / 8 for i in range(8)
    ]


def test_a_cast_leaves_integers_alone(tmp_path: Path, plan: Callable[..., Job]) -> None:
    files = hf_files()
    body = struct.pack("<2q", 7, 9)
    whole = safetensors(SHAPES)
    length = struct.unpack_from("<Q", whole)[0]
    table = json.loads(whole[8 : 8 + length])
    data = whole[8 + length :]
    table["ids"] = {
        "dtype": "I64",
        "shape": [2],
        "data_offsets": [len(data), len(data) + 16],
    }
    head = json.dumps(table).encode()
    files["model.safetensors"] = struct.pack("<Q", len(head)) + head + data + body
    job = plan(write(tmp_path / "m", files), dtype="float16")
    run(job, ignore)
    entry = read_header(job.out / "model.safetensors").tensors["ids"]
    raw = (job.out / "model.safetensors").read_bytes()

    assert entry.dtype == "int64"
    assert raw[entry.begin : entry.end] == body


def test_a_gguf_file_becomes_the_folder_that_the_plan_promised(
    tmp_path: Path, plan: Callable[..., Job]
) -> None:
    path = write(tmp_path, {"m.gguf": gguf()}) / "m.gguf"
    job = plan(path)
    run(job, ignore)
    settings = Settings(cache_dir=tmp_path / "cache")
    before = resolve_model(
        ModelSpec(source=str(path)), settings=settings, base=tmp_path
    )
    after = resolve_model(
        ModelSpec(source=str(job.out)), settings=settings, base=tmp_path
    )

    assert after.tensors == before.tensors
    assert after.config == before.config
    assert after.geometry == before.geometry
    assert "mit" in (job.out / "README.md").read_text()
    assert (job.out / "chat_template.jinja").read_text() == METADATA[
        "tokenizer.chat_template"
    ]


def test_query_and_key_rows_come_back_in_halves(
    tmp_path: Path, plan: Callable[..., Job]
) -> None:
    job = plan(write(tmp_path, {"m.gguf": gguf()}) / "m.gguf")
    run(job, ignore)
    weights = job.out / "model.safetensors"
    rows = [[row + col / 8 for col in range(8)] for row in range(8)]
    query = [rows[i] for i in (0, 2, 1, 3, 4, 6, 5, 7)]
    key = [rows[i] for i in (0, 2, 1, 3)]
    name = "model.layers.0.self_attn.{}_proj.weight".format

    assert floats(weights, name("q")) == [value for row in query for value in row]
    assert floats(weights, name("k")) == [value for row in key for value in row]
    assert floats(weights, name("o")) == [value for row in rows for value in row]


def test_a_large_model_is_split_into_files_with_an_index(tmp_path: Path) -> None:
    path = write(tmp_path, {"m.gguf": gguf()}) / "m.gguf"
    out = tmp_path / "split"
    out.mkdir()
    convert_gguf(path, out, dtype="bfloat16", progress=lambda *_: None, shard_bytes=500)
    facts = resolve_model(
        ModelSpec(source=str(out)),
        settings=Settings(cache_dir=tmp_path / "cache"),
        base=tmp_path,
    )

    assert {t.name: t.shape for t in facts.tensors} == SHAPES
    assert len({t.file for t in facts.tensors}) > 2


def test_the_tokenizer_of_a_gguf_file_splits_as_its_name_says(
    tmp_path: Path, plan: Callable[..., Job]
) -> None:
    from tokenizers import Tokenizer

    job = plan(write(tmp_path, {"m.gguf": gguf()}) / "m.gguf")
    run(job, ignore)
    tokenizer = Tokenizer.from_file(str(job.out / "tokenizer.json"))

    assert tokenizer.encode("abc 12</s>").tokens == [
        "ab",
        "c",
        "\u0120",
        "1",
        "2",
        "</s>",
    ]
    assert tokenizer.get_vocab() == {token: i for i, token in enumerate(TOKENS)}


def test_a_vocabulary_that_contradicts_its_merges_is_refused(
    tmp_path: Path, plan: Callable[..., Job]
) -> None:
    metadata = {**METADATA, "tokenizer.ggml.merges": ["no such"]}
    job = plan(write(tmp_path, {"m.gguf": gguf(metadata=metadata)}) / "m.gguf")
    with pytest.raises(LmiBuildError) as caught:
        run(job, ignore)

    assert caught.value.code == "source.bad-gguf"


@pytest.mark.parametrize("source", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
def test_casts_round_as_pytorch_does(source: str, target: str) -> None:
    torch = pytest.importorskip("torch")
    wide = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    edge = [0.0, -0.0, 1.0, 65504.0, 65520.0, 1e-8, np.inf, -np.inf, 3.3895314e38]
    values = np.concatenate([wide.view(np.float32), np.array(edge, np.float32)])
    values = values[~np.isnan(values)]
    tensor = torch.from_numpy(values.copy()).to(getattr(torch, source))
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    expected = tensor.to(getattr(torch, target)).view(torch.uint8).numpy().tobytes()

    assert cast_bytes(raw, source=source, target=target) == expected


def test_not_a_number_stays_one_through_a_cast() -> None:
    raw = struct.pack("<I", 0x7FFFFFFF) + struct.pack("<I", 0xFF800001)
    half = np.frombuffer(cast_bytes(raw, source="float32", target="bfloat16"), "<u2")
    wide = (half.astype(np.uint32) << 16).view(np.float32)

    assert np.isnan(wide).all()


def test_an_unreadable_file_says_which(
    tmp_path: Path, plan: Callable[..., Job]
) -> None:
    root = write(tmp_path / "m", hf_files())
    job = plan(root)
    (root / "LICENSE").unlink()
    (root / "LICENSE").mkdir()
    with pytest.raises(LmiBuildError, match="LICENSE"):
        run(job, ignore)


SENTENCE_FILES = {
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
}


def planned(job: Job) -> set[str]:
    rows: Any = job.params["files"]
    return {row[0] for row in rows}


def test_a_sentence_encoder_brings_the_settings_of_its_modules(
    plan: Callable[..., Job], tmp_path: Path
) -> None:
    """They lie one folder down, and nothing else of those folders is taken."""
    source = write(tmp_path / "m", {**hf_files(), **sentence_files()})
    job = plan(source)
    run(job, ignore)
    found = {str(p.relative_to(job.out)) for p in job.out.rglob("*") if p.is_file()}
    plain = plan(write(tmp_path / "n", hf_files()))

    assert found - planned(plain) == SENTENCE_FILES


def test_without_its_list_of_modules_no_folder_is_looked_into(
    plan: Callable[..., Job], tmp_path: Path
) -> None:
    files = {**hf_files(), **sentence_files()}
    del files["modules.json"]
    paths = planned(plan(write(tmp_path / "m", files)))

    assert paths == planned(plan(write(tmp_path / "n", hf_files())))


def test_a_link_out_of_a_modules_folder_is_refused(
    plan: Callable[..., Job], tmp_path: Path
) -> None:
    source = write(tmp_path / "m", {**hf_files(), **sentence_files()})
    (tmp_path / "secret.json").write_text("{}")
    (source / "1_Pooling" / "config.json").unlink()
    (source / "1_Pooling" / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(LmiBuildError) as caught:
        plan(source)

    assert caught.value.code == "source.link-outside"


def test_a_list_of_modules_that_is_no_list_is_refused(
    plan: Callable[..., Job], tmp_path: Path
) -> None:
    files = {**hf_files(), **sentence_files(), "modules.json": b"{}"}
    with pytest.raises(LmiBuildError) as caught:
        run(plan(write(tmp_path / "m", files)), ignore)

    assert caught.value.code == "source.bad-config"
