"""
Recipes for TensorRT-LLM through every stage, packed, verified, published or refused.

The engine itself is made by a program that stands for `trtllm-build`; everything else
is what a user's build runs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmi_build import api, artifacts
from lmi_build.checkpoint.formats.dequantized import DequantizedReader
from lmi_build.errors import (
    GateFailed,
    PublishFailed,
    RecipeInvalid,
    ToolMissing,
    VerifyFailed,
)
from lmi_build.values.recipe import CalibrationSpec, PublishSpec, QuantSpec
from lmi_build.values.settings import Settings, settings_from_environ
from lmi_build.verify.integrity import check_tree
from make_tiny_model import make_tiny_model
from stage_jobs import quantize
from trtllm_reader import read_model
from trtllm_toolchain import NO_DRIVER, install

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {{source: {model}}}
quantize: {quantize}
bounds: {{max_input_len: 48, max_output_len: 16, max_batch_size: 4}}
compile:
  backend: tensorrt-llm
  target: ml.g5.12xlarge
  release: {release}
  artifact: {artifact}
  tensor_parallel_size: {ranks}
verify: {verify}
"""
CALIBRATION = "calibration: {num_samples: 4, max_seq_len: 128}"
AWQ = f"{{method: awq, group_size: 64, sym: true, {CALIBRATION}}}"
SMALL = "{num_samples: 2, max_seq_len: 32}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 llama."""
    return make_tiny_model(
        tmp_path_factory.mktemp("model") / "tiny",
        hidden_size=128,
        intermediate_size=256,
    )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an A10G and docker, whose image is this environment."""
    root = tmp_path / "machine"
    install(root, monkeypatch, version="0.12.0")
    # A worker gets few variables; the daemon of a real machine needs none of them.
    docker = root / "bin" / "docker"
    docker.rename(root / "bin" / "docker-itself")
    variables = ("PYTHONPATH", "FAULT", "VERSION", "DOCKER_LOG")
    lines = [f"export {name}={os.environ[name]!r}" for name in variables]
    real = f'exec {sys.executable} "$(dirname "$0")/docker-itself" "$@"'
    answer = 'if [ "$1" = version ]; then echo 27.0; exit 0; fi'
    docker.write_text("\n".join(["#!/bin/sh", answer, *lines, real, ""]))
    docker.chmod(0o755)
    for name in variables:
        monkeypatch.delenv(name)
    return root


def settings_of(tmp_path: Path, **changes: Any) -> Settings:
    """Settings with a store of this test's own."""
    environment = {"PATH": os.environ["PATH"], **changes.pop("environment", {})}
    found = settings_from_environ(environment, cache_dir=tmp_path / "store")
    for name, value in changes.items():
        object.__setattr__(found, name, value)
    return found


def built(
    tmp_path: Path, settings: Settings, model: Path, **values: str
) -> tuple[Path, dict[str, Any]]:
    """The artifact's folder and its verification report."""
    words = {
        "quantize": "{method: none}",
        "release": "djl-tensorrtllm-0.30.0",
        "artifact": "engine",
        "ranks": "1",
        "verify": SMALL,
        **values,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, **words))
    plan = api.make_plan(api.load_recipe(path), settings)
    result = api.build(plan, settings)
    tree, _ = api.write_artifact(result, "tiny", tmp_path / "out", settings)
    return tree, json.loads(tree.with_name("tiny.verify.json").read_bytes())


def test_an_engine_is_packed_as_its_release_wants_it(
    tmp_path: Path, machine: Path, model: Path
) -> None:
    """Layout T: a repository below the root; the image loads it without compiling."""
    settings = settings_of(tmp_path, environment={"LMI_BUILD_RUNNER": "container"})

    tree, report = built(tmp_path, settings, model, ranks="2")

    names = {path.relative_to(tree).as_posix() for path in tree.rglob("*")}
    assert {
        "serving.properties",
        "tensorrt_llm/config.pbtxt",
        "tensorrt_llm/config.json",
        "tensorrt_llm/tokenizer.json",
        "tensorrt_llm/1/config.json",
        "tensorrt_llm/1/rank0.engine",
        "tensorrt_llm/1/rank1.engine",
    } <= names
    assert "config.json" not in names
    assert check_tree(tree) == ()
    verdicts = {row["lmi"]: row["outcome"] for row in report["startup"]}
    assert verdicts["0.30.0"] == "loads"
    assert verdicts["0.33.0"] != "loads"
    manifest = json.loads((tree / "manifest.json").read_bytes())
    assert manifest["compatibility"]["compute_capability"] == "8.6"
    engine = json.loads((tree / "tensorrt_llm/1/config.json").read_bytes())
    for name in ("max_input_len", "max_seq_len", "max_batch_size", "max_num_tokens"):
        assert engine["build_config"][name] == manifest["bounds"][name], name
    assert "run " in (machine / "docker.log").read_text()


def test_no_gpu_is_said_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """The way out is in the message, and nothing was spent."""
    install(tmp_path / "machine", monkeypatch, gpus=NO_DRIVER)
    settings = settings_of(tmp_path)

    with pytest.raises(ToolMissing) as caught:
        built(tmp_path, settings, model, quantize=AWQ)

    assert caught.value.code == "trtllm.no-gpu"
    assert "--until checkpoint" in caught.value.hints[0]
    assert not list((tmp_path / "store").glob("builds/tiny/*/*quantize*"))


def test_a_rehearsal_is_packed_and_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """It names its commands, has another key than the engine, and stays here."""
    install(tmp_path / "machine", monkeypatch, gpus=NO_DRIVER)
    settings = settings_of(tmp_path, rehearse=True)

    tree, report = built(tmp_path, settings, model)

    assert report["rehearsal"] is True
    found = json.loads((tree / "tensorrt_llm/1/rehearsal.json").read_bytes())
    assert found["commands"][0][0] == "trtllm-build"
    with pytest.raises(PublishFailed) as caught:
        artifacts.publish(tree, PublishSpec(to=str(tmp_path / "there")), settings)
    assert caught.value.code == "publish.rehearsal"
    assert not (tmp_path / "there").exists()


def test_a_quantized_checkpoint_is_built_measured_and_published(
    tmp_path: Path, model: Path
) -> None:
    """Without a GPU: two ranks of AWQ codes, and how far they are from the model."""
    settings = settings_of(tmp_path)

    tree, report = built(
        tmp_path,
        settings,
        model,
        quantize=AWQ,
        artifact="checkpoint",
        ranks="2",
    )

    assert report["engine"] == {"ranks": 2, "quant_algo": "W4A16_AWQ"}
    assert 0 < report["drift"]["mean_kl"] < 1
    assert check_tree(tree) == ()
    receipt = artifacts.publish(tree, PublishSpec(to=str(tmp_path / "there")), settings)
    assert receipt.num_files == len([p for p in tree.rglob("*") if p.is_file()])


def test_a_group_that_ranks_would_cut_is_refused_by_the_plan(
    tmp_path: Path, model: Path
) -> None:
    """The numbers and the fix, before a weight is read."""
    with pytest.raises(RecipeInvalid) as caught:
        built(
            tmp_path,
            settings_of(tmp_path),
            model,
            quantize=AWQ,
            artifact="checkpoint",
            ranks="4",
        )

    assert {problem.code for problem in caught.value.problems} == {"trtllm.layout"}


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_model_that_came_quantized_keeps_its_codes(
    method: str, tmp_path: Path, model: Path
) -> None:
    """A hub's AWQ or GPTQ folder is the model: recognised, mapped, float16 as told."""
    spec = QuantSpec(
        method=method,
        bits=4,
        group_size=64,
        sym=method == "gptq",
        calibration=CalibrationSpec(num_samples=2, max_seq_len=64),
    )
    (tmp_path / "made").mkdir()
    packed = quantize(tmp_path / "made", model, spec)

    tree, _ = built(tmp_path, settings_of(tmp_path), packed, artifact="checkpoint")

    config = json.loads((tree / "config.json").read_bytes())
    assert config["dtype"] == "float16"
    assert config["quantization"]["quant_algo"] == "W4A16_AWQ"
    assert config["quantization"]["has_zero_point"] == (method == "awq")
    found = read_model(tree)
    name = "model.layers.1.mlp.down_proj"
    with DequantizedReader(packed) as reader:
        wanted = reader.read(f"{name}.weight").float()
    assert torch.equal(found.coded[name].weight().float(), wanted)


def test_a_gate_is_judged_without_a_gpu(tmp_path: Path, model: Path) -> None:
    """The weights' own error fails the build, with the worst layers."""
    strict = "{num_samples: 2, max_seq_len: 32, gates: {max_mean_kl: 0.000001}}"
    with pytest.raises(GateFailed) as caught:
        built(
            tmp_path,
            settings_of(tmp_path),
            model,
            quantize=AWQ,
            artifact="checkpoint",
            verify=strict,
        )

    assert "max_mean_kl" in caught.value.message


def test_a_folder_for_the_other_backend(tmp_path: Path, model: Path) -> None:
    """`hf-quantized` at 0.33: one folder, loaded by PyTorch, compiled by nobody."""
    tree, report = built(
        tmp_path,
        settings_of(tmp_path),
        model,
        release="djl-tensorrtllm-0.33.0",
        artifact="hf-quantized",
    )

    verdicts = {row["lmi"]: row["outcome"] for row in report["startup"]}
    assert verdicts["0.33.0"] == "loads"
    assert "option.backend=pytorch" in (tree / "serving.properties").read_text()
    rows = artifacts.start_up(
        PublishSpec(to=str(tree)), settings_of(tmp_path), release="0.33"
    )
    assert [row.outcome for row in rows] == ["loads"]


def test_a_tokenizer_gets_a_class_that_the_image_has(
    tmp_path: Path, model: Path
) -> None:
    """What transformers 5 wrote is loaded by transformers 4; the source stays."""
    newer = tmp_path / "newer"
    shutil.copytree(model, newer)
    path = newer / "tokenizer_config.json"
    config = {**json.loads(path.read_bytes()), "tokenizer_class": "TokenizersBackend"}
    path.unlink()
    path.write_text(json.dumps(config))

    tree, _ = built(
        tmp_path,
        settings_of(tmp_path),
        newer,
        release="djl-tensorrtllm-0.33.0",
        artifact="hf-quantized",
    )

    packed = json.loads((tree / "tokenizer_config.json").read_bytes())
    assert packed == {**config, "tokenizer_class": "PreTrainedTokenizerFast"}
    assert json.loads(path.read_bytes()) == config


def test_an_engine_for_another_gpu_fails_verification(
    tmp_path: Path, machine: Path, model: Path
) -> None:
    """What the record says is held against the target, whoever packed it."""
    from lmi_build.spi import Job
    from lmi_build.verify import trtllm

    settings = settings_of(tmp_path, environment={"LMI_BUILD_RUNNER": "container"})
    tree, _ = built(tmp_path, settings, model)
    plan = api.make_plan(api.load_recipe(tmp_path / "recipe.yaml"), settings)
    stage = next(stage for stage in plan.stages if stage.kind == "verify")
    for name in ("report", "state"):
        (tmp_path / name).mkdir()

    def verify(**changes: Any) -> None:
        job = Job(
            stage="tiny/verify",
            params={**stage.params, **changes},
            inputs={"package": tree, "model": model},
            out=tmp_path / "report",
            state=tmp_path / "state",
        )
        trtllm.run(job, lambda _: None)

    verify()
    with pytest.raises(VerifyFailed, match=r"8\.9"):
        verify(compute_capability="8.9")
    with pytest.raises(VerifyFailed, match="`tensor_parallel_size` 1, 2 is wanted"):
        verify(tensor_parallel_size=2)
    assert machine.is_dir()
