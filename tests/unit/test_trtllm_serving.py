"""Layouts, `config.pbtxt` and `serving.properties` of each release."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from lmi_build.backends.trtllm.layout import artifact_layout, layout_problems
from lmi_build.backends.trtllm.serving_keys import serving_problems, serving_properties
from lmi_build.backends.trtllm.triton_config import (
    TritonModel,
    config_pbtxt,
    scheduler_is_overruled,
)
from lmi_build.catalog.releases import releases
from lmi_build.package.properties import parse_properties, render_properties
from trtllm_folders import BOUNDS, placement

TRITON = releases()["djl-tensorrtllm-0.32.0"]
ENGINE = releases()["djl-tensorrtllm-0.33.0"]
VERSIONS = ("0.5.0", "0.7.1", "0.8.0", "0.9.0", "0.11.0", "0.12.0")
_TOKEN = re.compile(r'"[^"]*"|[{}\[\]:]|[^\s{}\[\]:,"]+')


def read_pbtxt(text: str) -> list[tuple[str, Any]]:
    """Protocol buffers' text format, as far as such a file uses it."""
    found, rest = _fields(_TOKEN.findall(text), end=None)
    assert rest == []
    return found


def _fields(words: list[str], *, end: str | None) -> tuple[list[tuple[str, Any]], Any]:
    found: list[tuple[str, Any]] = []
    while words and words[0] != end:
        name, *words = words
        if words[0] == ":":
            words = words[1:]
        value: Any
        if words[0] == "{":
            value, words = _fields(words[1:], end="}")
        elif words[0] == "[":
            stop = words.index("]")
            value, words = words[1:stop], words[stop + 1 :]
        else:
            value, words = words[0].strip('"'), words[1:]
        found.append((name, value))
    return found, words[1:] if end else words


def tensors(text: str, direction: str) -> dict[str, dict[str, Any]]:
    rows = [dict(value) for name, value in read_pbtxt(text) if name == direction]
    found = {row["name"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def parameters(text: str) -> dict[str, str]:
    rows = [dict(value) for name, value in read_pbtxt(text) if name == "parameters"]
    return {row["key"]: dict(row["value"])["string_value"] for row in rows}


MODEL = TritonModel(
    model_path="/opt/ml/model/tensorrt_llm/1", max_batch_size=16, max_beam_width=2
)


@pytest.mark.parametrize("version", VERSIONS)
def test_config_pbtxt_says_what_the_backend_needs(version: str) -> None:
    text = config_pbtxt(version, MODEL)
    fields = dict(read_pbtxt(text))
    values = parameters(text)

    assert "${" not in text
    assert text.isascii()
    assert fields["backend"] == "tensorrtllm"
    assert fields["max_batch_size"] == "16"
    assert dict(fields["model_transaction_policy"]) == {"decoupled": "true"}
    assert values["gpt_model_path"] == "/opt/ml/model/tensorrt_llm/1"
    assert values["gpt_model_type"] == "inflight_fused_batching"
    assert values["max_beam_width"] == "2"
    assert values["batch_scheduler_policy"] == "guaranteed_no_evict"
    assert values["kv_cache_free_gpu_mem_fraction"] == "0.9"
    assert ("dynamic_batching" in fields) is (version != "0.5.0")


@pytest.mark.parametrize(
    ("version", "num_inputs", "num_outputs", "only"),
    [
        ("0.5.0", 16, 1, {"max_num_sequences", "enable_trt_overlap"}),
        (
            "0.7.1",
            23,
            4,
            {"max_num_sequences", "enable_trt_overlap", "enable_kv_cache_reuse"},
        ),
        (
            "0.8.0",
            28,
            6,
            {"enable_trt_overlap", "enable_kv_cache_reuse", "enable_chunked_context"},
        ),
        (
            "0.9.0",
            30,
            6,
            {"enable_trt_overlap", "enable_kv_cache_reuse", "enable_chunked_context"},
        ),
        ("0.11.0", 38, 6, {"enable_kv_cache_reuse", "enable_chunked_context"}),
        ("0.12.0", 38, 7, {"enable_kv_cache_reuse", "enable_chunked_context"}),
    ],
)
def test_each_version_has_its_own_interface(
    version: str, num_inputs: int, num_outputs: int, only: set[str]
) -> None:
    """Counted in the backend's own file at each tag."""
    text = config_pbtxt(version, MODEL)
    shared = {
        "gpt_model_type",
        "gpt_model_path",
        "max_beam_width",
        "batch_scheduler_policy",
        "kv_cache_free_gpu_mem_fraction",
    }

    assert len(tensors(text, "input")) == num_inputs
    assert len(tensors(text, "output")) == num_outputs
    assert set(parameters(text)) - shared == only


def test_types_changed_between_versions() -> None:
    old, new = config_pbtxt("0.5.0", MODEL), config_pbtxt("0.12.0", MODEL)

    assert tensors(old, "input")["end_id"]["data_type"] == "TYPE_UINT32"
    assert tensors(new, "input")["end_id"]["data_type"] == "TYPE_INT32"
    assert "allow_ragged_batch" not in tensors(old, "input")["input_ids"]
    assert tensors(new, "input")["input_ids"]["allow_ragged_batch"] == "true"
    assert "reshape" in tensors(new, "input")["streaming"]


@pytest.mark.parametrize(
    ("version", "chunked", "overruled"),
    [
        ("0.7.1", True, True),
        ("0.8.0", False, True),
        ("0.8.0", True, False),
        ("0.11.0", False, True),
        ("0.12.0", False, False),
    ],
)
def test_a_scheduler_that_would_be_overruled_is_refused(
    version: str, *, chunked: bool, overruled: bool
) -> None:
    name = "max_utilization"
    model = replace(MODEL, scheduler=name, chunked_context=chunked)

    assert scheduler_is_overruled(version, name, chunked=chunked) is overruled
    if overruled:
        with pytest.raises(ValueError, match="overruled"):
            config_pbtxt(version, model)
    else:
        assert (
            parameters(config_pbtxt(version, model))["batch_scheduler_policy"] == name
        )


@pytest.mark.parametrize(
    "change",
    [
        {"model_path": '/opt/"x'},
        {"model_path": "${engine_dir}"},
        {"kv_cache_fraction": 1.5},
        {"scheduler": "fair"},
    ],
)
def test_values_that_would_break_the_file_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"refused|no scheduler"):
        config_pbtxt("0.12.0", replace(MODEL, **change))


def test_layout_of_a_triton_repository() -> None:
    """No configuration lies at the root, where it would turn batching off."""
    layout = artifact_layout(TRITON, placement(tp=2))

    assert layout.engine_dir == "tensorrt_llm/1"
    assert layout.tokenizer_dir == "tensorrt_llm"
    assert layout.expected() == (
        "tensorrt_llm/1/config.json",
        "tensorrt_llm/1/rank0.engine",
        "tensorrt_llm/1/rank1.engine",
        "tensorrt_llm/config.pbtxt",
    )
    assert not [path for path in layout.expected() if "/" not in path]


def test_layout_of_an_encoder_and_its_decoder() -> None:
    """Two engines in one repository, and the backend is told where each lies."""
    pair = replace(placement(), encoder=True)
    layout = artifact_layout(TRITON, pair)

    assert layout.expected() == (
        "tensorrt_llm/1/decoder/config.json",
        "tensorrt_llm/1/decoder/rank0.engine",
        "tensorrt_llm/1/encoder/config.json",
        "tensorrt_llm/1/encoder/rank0.engine",
        "tensorrt_llm/config.pbtxt",
    )
    told = parameters(layout.files["tensorrt_llm/config.pbtxt"])
    assert told["gpt_model_path"] == "/opt/ml/model/tensorrt_llm/1/decoder"
    assert told["encoder_model_path"] == "/opt/ml/model/tensorrt_llm/1/encoder"
    alone = artifact_layout(TRITON, placement())
    told = parameters(alone.files["tensorrt_llm/config.pbtxt"])
    assert "encoder_model_path" not in told


def test_a_window_of_attention_reaches_the_server() -> None:
    """No checkpoint says it; without it a block would see more than it learnt to."""
    narrow = replace(placement(), attention_window=4096)

    texts = artifact_layout(TRITON, narrow).files["tensorrt_llm/config.pbtxt"]
    assert parameters(texts)["max_attention_window_size"] == "4096"
    told = serving_properties(ENGINE, narrow, dtype="float16")
    assert told["option.max_attention_window"] == "[4096]"
    told = serving_properties(ENGINE, placement(), dtype="float16")
    assert "option.max_attention_window" not in told


@pytest.mark.parametrize("name", ["djl-tensorrtllm-0.33.0", "djl-tensorrtllm-0.28.0"])
def test_a_release_that_loads_one_engine_refuses_two(name: str) -> None:
    problems = layout_problems(releases()[name], replace(placement(), encoder=True))

    assert "serve.encoder-unsupported" in {problem.code for problem in problems}


def test_layout_of_an_engine_folder() -> None:
    layout = artifact_layout(ENGINE, placement(tp=2, pp=2))

    assert (layout.engine_dir, layout.tokenizer_dir) == (".", ".")
    assert "config.json" not in layout.model_files
    assert layout.expected() == (
        "config.json",
        *(f"rank{rank}.engine" for rank in range(4)),
    )


def test_layout_of_what_is_not_compiled() -> None:
    served = artifact_layout(ENGINE, placement("hf-quantized"))
    kept = artifact_layout(TRITON, placement("checkpoint", tp=2))

    assert served.ranks == ()
    assert kept.ranks == ("rank0.safetensors", "rank1.safetensors")


def test_releases_refuse_what_they_do_not_serve() -> None:
    found = [
        problem.code for problem in layout_problems(TRITON, placement("hf-quantized"))
    ]
    overruled = replace(placement(), scheduler="max_utilization")

    assert found == ["serve.artifact-unsupported"]
    old = releases()["djl-tensorrtllm-0.28.0"]
    assert [problem.code for problem in layout_problems(old, overruled)] == [
        "serve.scheduler-overruled"
    ]
    assert list(layout_problems(TRITON, overruled)) == []
    with pytest.raises(ValueError, match="does not serve"):
        artifact_layout(TRITON, placement("hf-quantized"))


@pytest.mark.parametrize(
    ("name", "pp", "codes"),
    [
        ("tensorrt-llm-1.0.0", 1, ["serve.no-image"]),
        ("djl-tensorrtllm-0.36.0", 1, ["serve.release-broken"]),
        ("djl-tensorrtllm-0.34.0", 1, ["serve.no-image"]),
        ("djl-tensorrtllm-0.28.0", 2, ["serve.pipeline-unsupported"]),
        ("djl-tensorrtllm-0.29.0", 2, []),
        ("djl-tensorrtllm-0.33.0", 2, []),
    ],
)
def test_releases_that_cannot_serve_are_refused(
    name: str, pp: int, codes: list[str]
) -> None:
    problems = list(serving_problems(releases()[name], placement(pp=pp)))

    assert [problem.code for problem in problems] == codes
    assert all(problem.unsupported and problem.hint for problem in problems)


def test_the_handler_of_033_is_named_and_made_asynchronous() -> None:
    entries = serving_properties(
        ENGINE,
        placement(tp=2, pp=2),
        dtype="bfloat16",
        timeouts={"model_loading_timeout": 1800},
    )

    assert entries["engine"] == "Python"
    assert entries["option.rolling_batch"] == "disable"
    assert entries["option.async_mode"] == "true"
    assert entries["option.entryPoint"] == "djl_python.lmi_trtllm.trtllm_async_service"
    assert entries["option.pipeline_parallel_size"] == "2"
    assert entries["option.pipeline_parallel_degree"] == "2"
    assert entries["option.dtype"] == "bfloat16"
    assert entries["option.model_loading_timeout"] == "1800"
    assert "option.backend" not in entries
    assert "option.max_output_len" not in entries


def test_the_toolkits_are_given_mpi() -> None:
    for lmi, engine in (("0.27.0", "MPI"), ("0.32.0", "Python")):
        release = releases()[f"djl-tensorrtllm-{lmi}"]
        entries = serving_properties(release, placement(tp=2), dtype="float16")
        assert entries["engine"] == engine
        assert entries["option.mpi_mode"] == "true"
        assert entries["option.rolling_batch"] == "trtllm"
        assert entries["option.dtype"] == "fp16"
        assert "option.async_mode" not in entries


def test_the_pytorch_backend_is_asked_for() -> None:
    entries = serving_properties(ENGINE, placement("hf-quantized"), dtype="float16")

    assert entries["option.backend"] == "pytorch"


def test_the_file_is_read_alike_by_both_parsers() -> None:
    for release in releases().values():
        if not release.properties:
            continue
        entries = serving_properties(release, placement(), dtype="float16")
        data = render_properties(entries)
        assert parse_properties(data) == entries
        assert data.startswith(b"engine=")


def test_a_checkpoint_has_no_properties() -> None:
    with pytest.raises(ValueError, match="not served"):
        serving_properties(ENGINE, placement("checkpoint"), dtype="float16")


def test_chunks_and_reuse_reach_the_backend() -> None:
    bounds = replace(BOUNDS, chunked_context=True)
    placed = replace(placement(), bounds=bounds, kv_cache_reuse=True)
    entries = serving_properties(ENGINE, placed, dtype="float16")
    text = artifact_layout(TRITON, placed).files["tensorrt_llm/config.pbtxt"]

    assert entries["option.enable_chunked_prefill"] == "true"
    assert entries["option.enable_block_reuse"] == "true"
    assert parameters(text)["enable_chunked_context"] == "true"
    assert parameters(text)["enable_kv_cache_reuse"] == "true"
