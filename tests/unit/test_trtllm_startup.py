"""
What each LMI release does with a folder when it starts.

The verdicts of the front ends were held against the real classes of djl-serving (see
the golden file of this table); what the handlers refuse was read in their source.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lmi_build.backends.trtllm.front_ends import front_end, front_ends
from lmi_build.backends.trtllm.startup import startup, startup_everywhere
from lmi_build.backends.trtllm.tokenizer_config import served_tokenizer_config
from lmi_build.catalog.releases import releases
from lmi_build.errors import SourceInvalid
from trtllm_folders import (
    HF_CONFIG,
    artifact_texts,
    engine_config,
    engine_files,
    folder_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.verdicts import Verdict
    from lmi_build.catalog.releases import Release

TRITON = releases()["djl-tensorrtllm-0.32.0"]
ENGINE = releases()["djl-tensorrtllm-0.33.0"]
BROKEN = {"0.35.0", "0.36.0"}
SERVED = tuple(
    row
    for row in releases().values()
    if row.lmi and row.published and "engine" in row.artifacts
)


def verdict(texts: Mapping[str, str], lmi: str = "0.33.0", **more: str) -> Verdict:
    return startup(folder_of(texts), lmi, **more)  # type: ignore[arg-type]


def with_property(texts: Mapping[str, str], **entries: str | None) -> dict[str, str]:
    """The same artifact with properties set, or with None taken out."""
    lines = dict(
        line.split("=", 1) for line in texts["serving.properties"].splitlines()
    )
    for name, value in entries.items():
        key = "engine" if name == "engine" else f"option.{name}"
        lines.pop(key, None)
        if value is not None:
            lines[key] = value
    text = "".join(f"{key}={value}\n" for key, value in lines.items())
    return {**texts, "serving.properties": text}


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("release", SERVED, ids=lambda row: row.lmi)
def test_what_we_lay_out_is_loaded_as_it_is(release: Release, tp: int) -> None:
    texts = artifact_texts(release, tp=tp)
    found = verdict(texts, release.lmi, trtllm=release.trtllm)

    assert (found.outcome, found.fix) == ("loads", "")


def test_pipeline_ranks_are_given_their_gpus() -> None:
    """The server counts GPUs by another key than the handler."""
    texts = artifact_texts(ENGINE, tp=2, pp=2)
    hidden = with_property(texts, pipeline_parallel_degree=None)

    assert verdict(texts).outcome == "loads"
    found = verdict(hidden)
    assert found.outcome == "fails"
    assert "gives the engine 2 GPUs, it has 4 ranks" in found.reason


def test_each_layout_is_compiled_by_the_other_kind_of_release() -> None:
    engine, triton = artifact_texts(ENGINE), artifact_texts(TRITON)
    for lmi, front in front_ends().items():
        wrong = triton if front.layout == "engine" else engine
        found = verdict(wrong, lmi)
        # Before 0.28 an `engine` that is set keeps the root's config.json unread.
        expected = {"compiles"} if front.layout == "engine" else {"skips", "compiles"}
        assert found.outcome in expected, lmi
        assert found.fix


def test_a_model_is_compiled_unless_pytorch_serves_it() -> None:
    texts = artifact_texts(ENGINE, "hf-quantized")
    assert verdict(texts).outcome == "loads"
    # The key means nothing to releases without that backend.
    for lmi in ("0.25.0", "0.30.0", "0.32.0", "0.34.0"):
        assert verdict(with_property(texts, rolling_batch="auto"), lmi).outcome == (
            "compiles"
        )
    assert verdict(with_property(texts, backend=None)).outcome == "compiles"


def test_an_engine_is_not_served_by_pytorch() -> None:
    found = verdict(with_property(artifact_texts(ENGINE), backend="pytorch"))

    assert found.outcome == "fails"
    assert "names no architecture" in found.reason


def test_sources_whose_handler_cannot_start_are_told() -> None:
    texts = artifact_texts(ENGINE)
    for lmi in (*BROKEN, "master"):
        found = verdict(texts, lmi)
        assert found.outcome == "fails"
        assert "twice" in found.reason


@pytest.mark.parametrize(
    ("change", "outcome", "words"),
    [
        ({"model_id": "s3://bucket/prefix/"}, "elsewhere", "downloads"),
        ({"model_id": "/opt/other"}, "elsewhere", "another folder"),
        ({"model_id": "meta-llama/Llama-3.1-8B"}, "compiles", "from the hub"),
        ({"model_id": "/opt/ml/model"}, "loads", "build_config"),
        ({"engine": None}, "loads", "build_config"),
        ({"engine": "OnnxRuntime"}, "fails", "not in this container"),
        ({"entryPoint": "djl_python.huggingface"}, "fails", "entryPoint"),
        ({"async_mode": None}, "fails", "async mode"),
        ({"rolling_batch": "trtllm"}, "fails", "a scheduler"),
        ({"rolling_batch": None}, "loads", "build_config"),
        ({"async_mode": None, "entryPoint": None}, "loads", "build_config"),
        ({"max_rolling_batch_size": None}, "fails", "its default, is 32"),
        ({"max_rolling_batch_size": "17"}, "fails", "`max_batch_size` 16"),
        ({"max_num_tokens": "5000"}, "fails", "`max_num_tokens` 4096"),
        ({"tensor_parallel_degree": "4"}, "fails", "built for"),
    ],
)
def test_every_trap_of_033_is_found(
    change: dict[str, str | None], outcome: str, words: str
) -> None:
    texts = with_property(artifact_texts(ENGINE, tp=2), **change)
    found = verdict(texts)

    assert found.outcome == outcome
    assert words in found.reason
    assert bool(found.fix) is (outcome != "loads")


@pytest.mark.parametrize("change", [{"engine": "MPI"}, {"mpi_mode": "true"}])
def test_mpi_is_refused_where_the_handler_starts_its_own_ranks(
    change: dict[str, str],
) -> None:
    """One rank is harmless; two servers of two ranks each are not."""
    many = verdict(with_property(artifact_texts(ENGINE, tp=2), **change))
    one = verdict(with_property(artifact_texts(ENGINE, tp=1), **change))

    assert (many.outcome, one.outcome) == ("fails", "loads")


def test_an_unset_parallelism_is_noted() -> None:
    found = verdict(
        with_property(artifact_texts(ENGINE, tp=2), tensor_parallel_degree=None)
    )

    assert found.outcome == "loads"
    assert any("the number of GPUs" in note for note in found.notes)


def test_unknown_machines_are_noted() -> None:
    """Engines of others do not say where they were built."""
    assert any(
        "unknown: the GPU" in note for note in verdict(artifact_texts(ENGINE)).notes
    )


def test_a_missing_rank_fails() -> None:
    for release in (ENGINE, TRITON):
        texts = artifact_texts(release, tp=2)
        del texts[next(path for path in texts if path.endswith("rank1.engine"))]
        found = verdict(texts, release.lmi)
        assert found.outcome == "fails"
        assert "missing: 1" in found.reason


def test_a_rank_of_another_build_does_not_stop_the_server() -> None:
    assert verdict({**artifact_texts(ENGINE), "rank9.engine": "x"}).outcome == "loads"


def test_an_engine_of_another_version_fails() -> None:
    texts = artifact_texts(ENGINE)
    texts |= engine_files(engine_config(version="0.12.0"))

    assert verdict(texts, trtllm="0.21.0rc1").outcome == "fails"
    assert verdict(texts).outcome == "loads"


def test_a_bare_engine_has_no_tokenizer() -> None:
    """`trtllm-build` writes none, and the front end does not ask for one."""
    texts = artifact_texts(ENGINE)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        del texts[name]

    assert "no tokenizer" in verdict(texts).reason


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{}",
        '{"tokenizer_class": null}',
        '{"tokenizer_class": "TokenizersBackend"}',
    ],
)
def test_a_tokenizer_of_no_class_is_not_loaded(config: str | None) -> None:
    """Its class would be looked for in the engine's configuration."""
    texts = artifact_texts(ENGINE)
    del texts["tokenizer_config.json"]
    if config is not None:
        texts["tokenizer_config.json"] = config
    found = verdict(texts)
    repaired = served_tokenizer_config(config.encode() if config else None)

    assert found.outcome == "fails"
    assert "`tokenizer_class`" in found.fix
    assert repaired is not None
    texts["tokenizer_config.json"] = repaired.decode()
    assert verdict(texts).outcome == "loads"
    assert served_tokenizer_config(repaired) is None


def test_a_model_names_its_tokenizer_itself_unless_the_class_is_too_new() -> None:
    texts = artifact_texts(ENGINE, "hf-quantized")
    new = {**texts, "tokenizer_config.json": '{"tokenizer_class": "PythonBackend"}'}

    assert verdict({**texts, "tokenizer_config.json": "{}"}).outcome == "loads"
    assert verdict(new).outcome == "fails"


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff"])
def test_a_tokenizer_configuration_must_be_an_object(data: bytes) -> None:
    with pytest.raises(SourceInvalid) as caught:
        served_tokenizer_config(data)

    assert caught.value.code == "source.tokenizer-config"


def test_what_else_a_tokenizer_says_is_kept() -> None:
    data = b'{"tokenizer_class": "TokenizersBackend", "chat_template": "x", "n": 1}'

    assert json.loads(served_tokenizer_config(data) or b"") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "x",
        "n": 1,
    }
    assert served_tokenizer_config(b'{"tokenizer_class": "GPT2Tokenizer"}') is None
    assert served_tokenizer_config(b'{"auto_map": {"AutoTokenizer": []}}') is None


def test_a_checkpoint_is_compiled() -> None:
    texts = artifact_texts(ENGINE)
    config = {"architecture": "LlamaForCausalLM", "dtype": "float16"}
    texts["config.json"] = json.dumps(config)

    found = verdict(texts)
    assert found.outcome == "compiles"
    assert "checkpoint" in found.reason


def test_a_root_configuration_turns_the_old_scheduler_off() -> None:
    """Only where the scheduler is not named, and only from 0.28 on with an engine."""
    texts = artifact_texts(TRITON)
    texts["config.json"] = json.dumps(engine_config())
    unset = with_property(texts, rolling_batch=None)

    assert verdict(texts, "0.32.0").outcome == "loads"
    assert verdict(unset, "0.32.0").outcome == "skips"
    assert verdict(unset, "0.27.0").outcome == "loads"
    assert verdict(
        {**unset, "config.json": json.dumps(HF_CONFIG)}, "0.32.0"
    ).outcome == ("loads")


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        ("", "lies at the root"),
        ("a/b/", "lies deeper"),
    ],
)
def test_the_repository_must_be_one_folder_down(moved: str, words: str) -> None:
    texts = {
        path.replace("tensorrt_llm/", moved): text
        for path, text in artifact_texts(TRITON).items()
    }
    # The tokenizer's configuration at the root is read as nothing.
    texts.pop("config.json", None)
    found = verdict(texts, "0.32.0")

    assert found.outcome == "compiles"
    assert words in found.reason


def test_a_repository_without_a_tokenizer_is_compiled() -> None:
    texts = artifact_texts(TRITON)
    del texts["tensorrt_llm/tokenizer_config.json"]
    found = verdict(texts, "0.32.0")

    assert found.outcome == "compiles"
    assert "tokenizer_config.json" in found.reason


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("/opt/ml/model/tensorrt_llm/1", "${engine_dir}", "still ${engine_dir}"),
        ("/opt/ml/model/tensorrt_llm/1", "/models/1", "no engine lies there"),
        ("max_batch_size: 16", "max_batch_size: ${triton_max_batch_size}", "is still"),
        ("decoupled: true", "decoupled: false", "not decoupled"),
    ],
)
def test_a_template_that_nobody_filled_fails(old: str, new: str, words: str) -> None:
    texts = artifact_texts(TRITON)
    path = "tensorrt_llm/config.pbtxt"
    assert old in texts[path]
    texts[path] = texts[path].replace(old, new)
    found = verdict(texts, "0.32.0")

    assert found.outcome == "fails"
    assert words in found.reason


@pytest.mark.parametrize(
    ("layout", "lmi", "outcome"),
    [(TRITON, "0.32.0", "fails"), (ENGINE, "0.33.0", "compiles")],
)
def test_a_rehearsal_is_called_one(layout: Release, lmi: str, outcome: str) -> None:
    """Its commands lie where the engine would."""
    texts = artifact_texts(layout)
    place = "tensorrt_llm/1/" if layout is TRITON else ""
    texts = {
        path: text
        for path, text in texts.items()
        if path not in {f"{place}config.json", f"{place}rank0.engine"}
    }
    found = verdict({**texts, f"{place}rehearsal.json": "{}"}, lmi)

    assert found.outcome == outcome
    assert "the engine was rehearsed, not built" in found.reason
    assert "--rehearse" in found.fix


def test_a_repository_spelt_as_the_template_spells_it_is_read() -> None:
    """Lines, commas and comments are free in that format."""
    texts = artifact_texts(TRITON)
    texts["tensorrt_llm/config.pbtxt"] = """
        # parameters { key: "gpt_model_path" value: { string_value: "/wrong" } }
        max_batch_size: 16
        model_transaction_policy { decoupled: True }
        parameters: {
          key: "gpt_model_type"
          value: { string_value: "inflight_fused_batching" }
        }
        parameters: {
          key: "gpt_model_path"
          value: {
            string_value: "/opt/ml/model/tensorrt_llm/1"
          }
        }
    """

    assert verdict(texts, "0.32.0").outcome == "loads"


def test_python_alone_does_not_start_the_old_handler() -> None:
    texts = with_property(
        artifact_texts(releases()["djl-tensorrtllm-0.27.0"]),
        engine="Python",
        mpi_mode=None,
    )

    assert verdict(texts, "0.27.0").outcome == "fails"
    assert verdict(texts, "0.28.0").outcome == "loads"
    assert verdict(with_property(texts, mpi_mode="true"), "0.27.0").outcome == "loads"


def test_t5_is_served_from_folders_of_its_own() -> None:
    """LMI 0.28 looks for them; 0.27 always builds."""
    texts = {
        "serving.properties": "option.rolling_batch=auto\n",
        "config.json": json.dumps({"model_type": "t5"}),
    }
    built = {**texts, "t5_encoder/config.json": "{}"}

    assert verdict(texts, "0.28.0").outcome == "compiles"
    assert verdict(built, "0.28.0").outcome == "loads"
    assert verdict(built, "0.27.0").outcome == "compiles"


def test_a_folder_in_a_folder_stands_for_it() -> None:
    """Hidden files do not count; the engine's path inside the container moves along."""
    for release in (ENGINE, TRITON):
        texts = {f"deep/{k}": v for k, v in artifact_texts(release).items()}
        path = "deep/tensorrt_llm/config.pbtxt"
        if path in texts:
            assert verdict(texts, release.lmi).outcome == "fails"
            texts[path] = texts[path].replace("/opt/ml/model", "/opt/ml/model/deep")
        texts[".hidden"] = "x"
        assert verdict(texts, release.lmi).outcome == "loads"
        assert verdict({**texts, "shown": "x"}, release.lmi).outcome == "fails"


def test_nothing_to_go_by_fails() -> None:
    found = verdict({"readme.txt": "x"})

    assert found.outcome == "fails"
    assert "no `engine` is set" in found.reason


def test_properties_of_the_environment_count() -> None:
    """They fill what the file leaves open, and no more."""
    texts = with_property(artifact_texts(ENGINE, "hf-quantized"), backend=None)
    folder = folder_of(texts)

    assert startup(folder, "0.33.0").outcome == "compiles"
    environment = {"OPTION_BACKEND": "pytorch", "OPTION_ROLLING_BATCH": "vllm"}
    assert startup(folder, "0.33.0", environment=environment).outcome == "loads"


def test_properties_in_the_other_spelling_are_read() -> None:
    texts = artifact_texts(ENGINE)
    lines = texts["serving.properties"].replace("=", " : ")
    texts["serving.properties"] = f"! written by hand\n{lines}"

    assert verdict(texts).outcome == "loads"
    texts["serving.properties"] = "option.entryPoint=\\u12"
    assert verdict(texts).outcome == "fails"


def test_every_release_has_a_verdict() -> None:
    found = startup_everywhere(folder_of(artifact_texts(ENGINE)))

    assert [row.lmi for row in found] == list(front_ends())
    assert [row.lmi for row in found if row.outcome == "loads"] == ["0.33.0"]


def test_an_unknown_release_is_an_error() -> None:
    with pytest.raises(KeyError):
        front_end("0.1.0")
