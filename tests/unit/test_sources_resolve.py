"""Laws of resolving models on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.errors import LmiBuildError, SourceInvalid, Unsupported
from lmi_build.sources import cache as cache_module
from lmi_build.sources.resolve import (
    estimate_fetch,
    fetch_distributions,
    fetch_secrets,
    fetch_settings,
    fetch_stage_params,
    resolve_model,
    source_kind,
)
from lmi_build.values.recipe import ModelSpec
from lmi_build.values.settings import Settings
from tiny_models import CONFIG, METADATA, SHAPES, gguf, hf_files, safetensors

if TYPE_CHECKING:
    from lmi_build.values.model import ModelFacts


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        # Old enough for the cache to trust its time stamp.
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return folder


def resolve(source: Path | str, settings: Settings, **spec: Any) -> ModelFacts:
    return resolve_model(
        ModelSpec(source=str(source), **spec), settings=settings, base=Path("/nowhere")
    )


def code_of(source: Path | str, settings: Settings, **spec: Any) -> str:
    with pytest.raises(LmiBuildError) as caught:
        resolve(source, settings, **spec)

    assert caught.value.hints
    return caught.value.code


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("s3://bucket/prefix", "s3"),
        ("s3://bucket/x.gguf", "s3"),
        ("./model.gguf", "gguf"),
        ("MODEL.GGUF", "gguf"),
        ("/abs/folder", "folder"),
        ("./here", "folder"),
        ("../there", "folder"),
        ("~/models/x", "folder"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "hub"),
        ("a/b.c-d_e", "hub"),
    ],
)
def test_the_kind_of_a_source_is_seen_in_its_spelling(
    source: str, kind: str, tmp_path: Path
) -> None:
    assert source_kind(source, base=tmp_path) == kind


def test_an_existing_folder_is_not_mistaken_for_a_repository(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)

    assert source_kind("owner/name", base=tmp_path) == "folder"


@pytest.mark.parametrize(
    "source",
    ["", "gpt2", "a/b/c", "a b/c", "-a/b", "a/b\n", "a/..", "a..b/c", "x/" * 60],
)
def test_what_is_no_source_is_refused_with_the_forms_that_are(
    source: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceInvalid) as caught:
        source_kind(source, base=tmp_path)

    assert caught.value.code == "source.bad-name"
    assert "owner/name" in caught.value.hints[0]


def test_facts_of_a_folder_name_the_needed_files_and_count_the_others(
    tmp_path: Path, settings: Settings
) -> None:
    facts = resolve(write(tmp_path / "m", hf_files()), settings)

    assert [file.path for file in facts.files] == [
        "LICENSE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert facts.num_skipped_bytes == 1000
    assert {t.name: t.shape for t in facts.tensors} == SHAPES
    assert facts.dtype == "float32"
    assert facts.geometry.num_key_value_heads == 1


def test_an_unchanged_file_is_hashed_once(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "m", hf_files())
    first = resolve(root, settings)

    def refuse(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(cache_module, "digest_file", refuse)

    assert resolve(root, settings) == first


def test_a_file_written_a_moment_ago_is_not_trusted_to_stay(
    tmp_path: Path, settings: Settings
) -> None:
    root = write(tmp_path / "m", hf_files())
    path = root / "LICENSE"
    path.write_bytes(b"one")
    before = path.stat().st_mtime_ns
    first = resolve(root, settings)
    path.write_bytes(b"two")
    os.utime(path, ns=(before, before))

    assert resolve(root, settings).files[0].digest != first.files[0].digest


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"key": 1}'])
def test_a_damaged_cache_record_is_as_good_as_none(
    tmp_path: Path, settings: Settings, damage: bytes
) -> None:
    path = write(tmp_path, {"m.gguf": gguf()}) / "m.gguf"
    first = resolve(path, settings)
    for record in (settings.cache_dir / "facts").iterdir():
        record.write_bytes(damage)

    assert resolve(path, settings) == first


def test_a_changed_value_in_a_cache_record_is_noticed(
    tmp_path: Path, settings: Settings
) -> None:
    path = write(tmp_path, {"m.gguf": gguf()}) / "m.gguf"
    first = resolve(path, settings)
    for record in (settings.cache_dir / "facts").iterdir():
        record.write_text(record.read_text().replace('"llama"', '"other"'))

    assert resolve(path, settings) == first


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, settings: Settings
) -> None:
    path = write(tmp_path, {"m.gguf": gguf(), "cache": b"a file"}) / "m.gguf"

    assert resolve(path, settings).kind == "gguf"


def test_a_gguf_file_shows_what_fetch_will_make_of_it(
    tmp_path: Path, settings: Settings
) -> None:
    path = write(tmp_path, {"m.gguf": gguf()}) / "m.gguf"
    facts = resolve(path, settings)

    assert {t.name: t.shape for t in facts.tensors} == SHAPES
    assert {t.dtype for t in facts.tensors} == {"bfloat16"}
    assert facts.config["torch_dtype"] == "bfloat16"
    assert facts.geometry.head_dim == 4
    assert resolve(path, settings, dtype="float16").dtype == "float16"


def test_where_a_model_lies_does_not_reach_the_key(
    tmp_path: Path, settings: Settings
) -> None:
    one = write(tmp_path / "a", {"m.gguf": gguf()}) / "m.gguf"
    two = write(tmp_path / "b", {"other.gguf": gguf()}) / "other.gguf"
    spec = ModelSpec(source="x")
    params = [fetch_stage_params(resolve(p, settings), spec) for p in (one, two)]

    assert params[0] == params[1]
    assert str(tmp_path) not in json.dumps(params)
    assert fetch_settings(resolve(one, settings), settings)["location"] == str(one)


def test_every_wish_that_changes_bytes_reaches_the_key(
    tmp_path: Path, settings: Settings
) -> None:
    root = write(tmp_path / "m", hf_files())
    specs = [
        ModelSpec(source=str(root)),
        ModelSpec(source=str(root), dtype="float16"),
        ModelSpec(source=str(root), dtype="bfloat16"),
        ModelSpec(source=str(root), trust_remote_code=True),
    ]
    keys = {
        json.dumps(
            fetch_stage_params(resolve_model(s, settings=settings, base=root), s)
        )
        for s in specs
    }

    assert len(keys) == len(specs)


def test_only_sources_that_need_a_secret_ask_for_it(
    tmp_path: Path, settings: Settings
) -> None:
    facts = resolve(write(tmp_path / "m", hf_files()), settings)

    assert fetch_secrets(facts) == ()
    assert fetch_secrets(dataclasses.replace(facts, kind="hub")) == ("hub",)
    assert fetch_secrets(
        dataclasses.replace(facts, kind="gguf", location="s3://b/m.gguf")
    ) == ("aws",)


def test_only_conversions_depend_on_libraries() -> None:
    assert fetch_distributions("folder") == ()
    assert fetch_distributions("hub", dtype="bfloat16") == ("numpy",)
    assert "gguf" in fetch_distributions("gguf")


def test_the_estimate_counts_what_will_lie_on_disk(
    tmp_path: Path, settings: Settings
) -> None:
    path = write(tmp_path, {"m.gguf": gguf()}) / "m.gguf"
    facts = resolve(path, settings)
    estimate = estimate_fetch(facts, ModelSpec(source="x"))

    assert estimate.download_bytes == 0
    assert estimate.disk_bytes == 2 * sum(t.num_elements for t in facts.tensors)


def without(*names: str, **more: bytes) -> dict[str, bytes]:
    files = {k: v for k, v in hf_files().items() if k not in names}
    return files | {k.replace("__", "."): v for k, v in more.items()}


AUTO_MAP = {**CONFIG, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
FOREIGN = {**CONFIG, "auto_map": {"AutoModelForCausalLM": "a/b--modeling_x.X"}}
BROKEN_FOLDERS: list[tuple[str, dict[str, bytes]]] = [
    ("source.no-config", without("config.json")),
    ("source.no-config", without("config.json", adapter_config__json=b"{}")),
    ("source.no-tokenizer", without("tokenizer.json")),
    ("source.no-weights", without("model.safetensors")),
    ("source.pickle-only", without("model.safetensors", pytorch_model__bin=b"x")),
    ("source.pickle-only", without("model.safetensors", model__pt=b"x")),
    ("source.bad-config", without(config__json=b"{")),
    ("source.bad-config", without(config__json=b"[]")),
    ("source.bad-config", without(config__json=b"{}")),
    ("source.bad-config", without(config__json=b"\xff")),
    ("source.remote-code", without(config__json=json.dumps(AUTO_MAP).encode())),
    ("source.remote-code", without(config__json=json.dumps(FOREIGN).encode())),
    (
        "source.no-weights",
        without("model.safetensors", a__safetensors=b"x", b__safetensors=b"x"),
    ),
    (
        "source.no-weights",
        without(
            model__safetensors__index__json=b'{"weight_map": {"a": "gone.safetensors"}}'
        ),
    ),
    (
        "source.unsafe-name",
        without(
            model__safetensors__index__json=b'{"weight_map": {"a": "../x.safetensors"}}'
        ),
    ),
    (
        "source.bad-weights",
        without(
            model__safetensors__index__json=(
                b'{"weight_map": {"not.there": "model.safetensors"}}'
            )
        ),
    ),
    ("source.bad-config", without(model__safetensors__index__json=b"{}")),
    ("checkpoint.truncated", without(model__safetensors=safetensors(SHAPES)[:-1])),
]


@pytest.mark.parametrize(("code", "files"), BROKEN_FOLDERS)
def test_a_broken_folder_is_refused_with_its_code(
    code: str, files: dict[str, bytes], tmp_path: Path, settings: Settings
) -> None:
    assert code_of(write(tmp_path / "m", files), settings) == code


def test_trusted_code_is_part_of_the_model(tmp_path: Path, settings: Settings) -> None:
    files = without(
        config__json=json.dumps(AUTO_MAP).encode(), modeling_x__py=b"class X: ..."
    )
    root = write(tmp_path / "m", files)

    assert code_of(root, settings) == "source.remote-code"
    assert "modeling_x.py" in [
        file.path for file in resolve(root, settings, trust_remote_code=True).files
    ]


@pytest.mark.parametrize("config", [AUTO_MAP, FOREIGN])
def test_trusted_code_that_cannot_be_hashed_is_refused(
    config: dict[str, Any], tmp_path: Path, settings: Settings
) -> None:
    root = write(tmp_path / "m", without(config__json=json.dumps(config).encode()))

    assert code_of(root, settings, trust_remote_code=True) == "source.remote-code"


def test_a_link_out_of_the_folder_is_refused(
    tmp_path: Path, settings: Settings
) -> None:
    root = write(tmp_path / "m", hf_files())
    (tmp_path / "private").write_bytes(b"key")
    (root / "README.md").symlink_to(tmp_path / "private")

    assert code_of(root, settings) == "source.link-outside"


def test_the_links_of_the_hubs_own_cache_are_followed(
    tmp_path: Path, settings: Settings
) -> None:
    blobs = tmp_path / "models--a--b" / "blobs"
    root = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    root.mkdir(parents=True)
    write(blobs, hf_files())
    for name in without("onnx/model.onnx"):
        (root / name).symlink_to(Path("../../blobs") / name)

    assert len(resolve(root, settings).files) == 6


def test_a_missing_path_names_what_lies_beside_it(
    tmp_path: Path, settings: Settings
) -> None:
    write(tmp_path, {"near.gguf": gguf()})
    with pytest.raises(SourceInvalid, match=r"near\.gguf") as caught:
        resolve(tmp_path / "far.gguf", settings)

    assert caught.value.code == "source.not-found"


def test_a_file_name_that_is_not_utf8_does_no_harm(
    tmp_path: Path, settings: Settings
) -> None:
    root = write(tmp_path / "m", hf_files())
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.txt")).write_bytes(b"")

    assert len(resolve(root, settings).files) == 6


def changed(**values: Any) -> dict[str, Any]:
    metadata = dict(METADATA)
    for key, value in values.items():
        name = key.replace("__", ".")
        if value is None:
            metadata.pop(name)
        else:
            metadata[name] = value
    return metadata


@pytest.mark.parametrize(
    ("code", "metadata"),
    [
        ("source.gguf-architecture", changed(general__architecture="mamba")),
        ("source.gguf-architecture", changed(general__architecture=None)),
        ("source.gguf-feature", changed(llama__expert_count=8)),
        ("source.gguf-feature", changed(llama__rope__scaling__type="yarn")),
        ("source.bad-gguf", changed(llama__block_count=2)),
        ("source.bad-gguf", changed(llama__block_count=2**31)),
        ("source.bad-gguf", changed(llama__block_count=None)),
        ("source.bad-gguf", changed(llama__embedding_length=16)),
        ("source.bad-gguf", changed(llama__attention__head_count="two")),
        ("source.bad-gguf", changed(general__alignment=3)),
        ("source.gguf-tokenizer", changed(tokenizer__ggml__pre="who-knows")),
        ("source.gguf-tokenizer", changed(tokenizer__ggml__model="bert")),
        ("source.no-tokenizer", changed(tokenizer__ggml__tokens=None)),
    ],
)
def test_what_a_gguf_file_cannot_tell_exactly_is_refused(
    code: str, metadata: dict[str, Any], tmp_path: Path, settings: Settings
) -> None:
    path = write(tmp_path, {"m.gguf": gguf(metadata=metadata)}) / "m.gguf"

    assert code_of(path, settings) == code


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_gate_exps.weight"])
def test_a_tensor_that_has_no_place_is_refused(
    name: str, tmp_path: Path, settings: Settings
) -> None:
    from tiny_models import GGUF_SHAPES

    data = gguf(shapes={**GGUF_SHAPES, name: (8,)})
    path = write(tmp_path, {"m.gguf": data}) / "m.gguf"

    assert code_of(path, settings) == "source.gguf-feature"


def test_an_integer_model_cannot_be_asked_to_become_float(
    tmp_path: Path, settings: Settings
) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq"}}
    root = write(tmp_path / "m", without(config__json=json.dumps(config).encode()))
    with pytest.raises(Unsupported) as caught:
        resolve(root, settings, dtype="float16")

    assert caught.value.code == "source.cast"
