"""What an engine folder says, and what is refused in one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.folder import MAX_TEXT_BYTES, listed_folder, local_folder
from lmi_build.backends.trtllm.engine_checks import (
    Expected,
    checkpoint_problems,
    engine_problems,
    unknowns,
)
from lmi_build.backends.trtllm.engine_folder import (
    read_checkpoint_folder,
    read_engine_folder,
)
from lmi_build.errors import VerifyFailed
from trtllm_folders import engine_config, engine_files, folder_of

if TYPE_CHECKING:
    from pathlib import Path

# As `build.py` of TensorRT-LLM 0.7 writes it.
OLD_CONFIG: dict[str, dict[str, Any]] = {
    "builder_config": {
        "name": "llama",
        "precision": "float16",
        "tensor_parallel": 2,
        "pipeline_parallel": 1,
        "vocab_size": 32000,
        "max_batch_size": 8,
        "max_beam_width": 1,
        "max_input_len": 1024,
        "max_output_len": 512,
        "max_num_tokens": None,
        "quant_mode": 0,
    },
    "plugin_config": {"use_paged_context_fmha": False},
}
CHECKPOINT = {
    "architecture": "LlamaForCausalLM",
    "dtype": "bfloat16",
    "mapping": {"world_size": 2, "tp_size": 2},
    "quantization": {"quant_algo": "W8A16"},
}


def codes(found: Any) -> list[str]:
    return [problem.code for problem in found]


def test_a_current_engine_is_read() -> None:
    engine = read_engine_folder(folder_of(engine_files(engine_config(tp=2, pp=2))))

    assert engine.spelling == "build_config"
    assert (engine.version, engine.architecture) == ("0.21.0rc1", "LlamaForCausalLM")
    assert (engine.dtype, engine.quant_algo) == ("float16", "W4A16_AWQ")
    assert engine.kv_cache_quant_algo == ""
    assert (engine.world_size, engine.vocab_size) == (4, 32000)
    assert engine.max_seq_len == 1500
    assert engine.paged_context
    assert sorted(engine.ranks) == [0, 1, 2, 3]
    assert engine_problems(engine, Expected()) == ()


def test_an_engine_of_an_old_release_is_read() -> None:
    """Up to 0.7 the file names carry everything and the configuration is another."""
    files = {
        "config.json": json.dumps(OLD_CONFIG),
        "llama_float16_tp2_rank0.engine": "x",
        "llama_float16_tp2_rank1.engine": "x",
        "model.cache": "x",
    }
    engine = read_engine_folder(folder_of(files))

    assert engine.spelling == "builder_config"
    assert (engine.version, engine.quant_algo) == (None, None)
    assert (engine.tensor_parallel_size, engine.max_seq_len) == (2, 1536)
    assert sorted(engine.ranks) == [0, 1]
    assert len(unknowns(engine)) == 3
    assert engine_problems(engine, Expected(trtllm="0.7.1", quant_algo="")) == ()


def test_an_old_engine_with_pipeline_ranks_is_read() -> None:
    builder = {**OLD_CONFIG["builder_config"], "pipeline_parallel": 2}
    files = {"config.json": json.dumps({"builder_config": builder})}
    files |= {f"llama_float16_tp2_pp2_rank{rank}.engine": "x" for rank in range(4)}
    engine = read_engine_folder(folder_of(files))

    assert engine.world_size == 4
    assert engine_problems(engine, Expected()) == ()


def test_every_difference_from_the_plan_is_said() -> None:
    files = engine_files(engine_config(tp=2))
    files["engine.json"] = json.dumps(
        {"gpu": "NVIDIA A10G", "compute_capability": "8.6", "tensorrt": "10.9.0"}
    )
    del files["rank1.engine"]
    files["rank7.engine"] = "x"
    files["rank0.engine"] = ""
    problems = engine_problems(
        read_engine_folder(folder_of(files)),
        Expected(
            trtllm="0.12.0",
            tensorrt="10.10.0.31",
            tensor_parallel_size=4,
            bounds={"max_input_len": 2000, "max_batch_size": 16, "max_seq_len": 3000},
            quant_algo="W8A16",
            kv_cache_quant_algo="INT8",
            dtype="bfloat16",
            vocab_size=32001,
            device="L4",
            compute_capability="8.9",
        ),
    )

    assert codes(problems) == [
        "engine.rank-missing",
        "engine.rank-extra",
        "engine.rank-missing",
        "engine.parallel-differs",
        "engine.bounds-smaller",
        "engine.bounds-smaller",
        "engine.model-differs",
        "engine.model-differs",
        "engine.model-differs",
        "engine.model-differs",
        "engine.version-differs",
        "engine.version-differs",
        "engine.gpu-differs",
    ]
    assert "missing: 1" in problems[0].message
    assert "`max_input_len` 1000, 2000 is promised" in problems[4].message
    assert "NVIDIA A10G" in problems[-1].message
    assert "L4 (8.9)" in problems[-1].message


def test_an_engine_may_take_more_than_promised() -> None:
    engine = read_engine_folder(folder_of(engine_files(engine_config())))
    bounds = {"max_input_len": 1, "max_seq_len": 2, "max_batch_size": 1}

    assert engine_problems(engine, Expected(bounds=bounds)) == ()


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("0.12.0", "0.12.0", True),
        ("0.12.0+cu125", "v0.12.0", True),
        ("9.3.0.post12.dev1", "9.3.0", True),
        ("10.10.0.31", "10.10.0", True),
        ("10.3", "10.3.0", True),
        ("10.30", "10.3.0", False),
        ("0.21.0", "0.21.0rc1", False),
        ("0.12.0.dev2024080600", "0.12.0", False),
    ],
)
def test_versions_are_compared_without_their_platform(
    found: str, wanted: str, *, same: bool
) -> None:
    """A release candidate is another version; a wheel's suffix is not."""
    engine = read_engine_folder(folder_of(engine_files(engine_config(version=found))))

    assert (engine_problems(engine, Expected(trtllm=wanted)) == ()) is same


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[1]", "holds a list"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ("{}", "neither `build_config` nor `builder_config`"),
        ('{"build_config": {}}', "`pretrained_config`"),
        ('{"build_config": 3, "pretrained_config": {}}', "`build_config` is 3"),
        (
            '{"build_config": {"max_batch_size": -1}, "pretrained_config": {}}',
            "`max_batch_size` is -1",
        ),
        (
            '{"build_config": {"max_batch_size": 1e9}, "pretrained_config": {}}',
            "`max_batch_size` is 1000000000.0",
        ),
        (
            '{"build_config": {}, "pretrained_config": {"mapping": {"tp_size": 0}}}',
            "`tp_size` is 0",
        ),
        (
            '{"build_config": 0, "pretrained_config": {}, "version": "1"}',
            "`build_config` is 0",
        ),
        (
            '{"build_config": {}, "pretrained_config": {"dtype": ["float16"]}}',
            "`dtype` is ['float16']",
        ),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_nonsense_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(VerifyFailed) as caught:
        read_engine_folder(folder_of({"config.json": text}))

    assert caught.value.code == "engine.unreadable"
    assert reason in caught.value.message


def test_a_rank_named_twice_is_refused() -> None:
    files = {
        "config.json": json.dumps(OLD_CONFIG),
        "llama_float16_tp2_rank0.engine": "x",
        "opt_float16_tp2_rank0.engine": "x",
    }
    with pytest.raises(VerifyFailed, match="of rank 0 as well"):
        read_engine_folder(folder_of(files))


def test_an_absurdly_large_configuration_is_not_read() -> None:
    def read(path: str) -> bytes:
        raise AssertionError(path)

    sizes = {"config.json": MAX_TEXT_BYTES + 1}
    with pytest.raises(VerifyFailed, match="more than"):
        read_engine_folder(listed_folder(sizes, read, where="s3://b/p"))


@pytest.mark.parametrize("path", ["../config.json", "/etc/passwd", "a//b", "a\\b", ""])
def test_a_listing_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(VerifyFailed) as caught:
        listed_folder({path: 1}, lambda _: b"", where="s3://b/p")

    assert caught.value.code == "engine.unsafe-path"


def test_links_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("x")
    root = tmp_path / "artifact"
    root.mkdir()
    (root / "inside.txt").write_text("x")
    (root / "good").symlink_to(root / "inside.txt")

    assert local_folder(root).sizes == {"good": 1, "inside.txt": 1}
    (root / "config.json").symlink_to(outside)
    with pytest.raises(VerifyFailed, match="out of the folder"):
        local_folder(root)
    (root / "config.json").unlink()
    (root / "config.json").symlink_to(tmp_path / "nothing")
    with pytest.raises(VerifyFailed, match="link to nothing"):
        local_folder(root)


def test_a_record_of_the_wrong_shape_is_refused() -> None:
    files = {**engine_files(engine_config()), "engine.json": '{"gpu": 3}'}
    with pytest.raises(VerifyFailed, match="must be texts"):
        read_engine_folder(folder_of(files))


def test_a_checkpoint_is_read_and_compared() -> None:
    files = {"config.json": json.dumps(CHECKPOINT), "rank0.safetensors": "x"}
    checkpoint = read_checkpoint_folder(folder_of(files))

    assert checkpoint.quant_algo == "W8A16"
    assert codes(checkpoint_problems(checkpoint, Expected(quant_algo=""))) == [
        "engine.rank-missing",
        "engine.model-differs",
    ]


def test_an_engine_is_not_a_checkpoint() -> None:
    with pytest.raises(VerifyFailed, match="`architecture` is missing"):
        read_checkpoint_folder(folder_of(engine_files(engine_config())))
