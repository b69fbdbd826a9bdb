"""Recipes for vLLM through every stage, on a tiny model, packed and judged here."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from formats import quantize_folder_as, scheme
from lmi_build import api, artifacts
from lmi_build.backends.vllm import folder_worker
from lmi_build.checkpoint.formats.dequantized import DequantizedReader
from lmi_build.errors import GateFailed, SourceInvalid, VerifyFailed
from lmi_build.spi import Job
from lmi_build.values.recipe import PublishSpec
from lmi_build.values.settings import Settings, settings_from_environ
from lmi_build.verify import vllm as verify_vllm
from lmi_build.verify.integrity import refuse_if_damaged
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.events import Event

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {{source: {model}}}
quantize: {quantize}
bounds: {{max_input_len: 48, max_output_len: 16, max_batch_size: 4}}
compile:
  backend: vllm
  target: ml.g5.xlarge
  release: {release}
  options: {{dtype: float16}}
serve: {{rolling_batch: {scheduler}}}
verify: {verify}
"""
INT8 = "{method: int8}"
SMALL = "{num_samples: 1, max_seq_len: 16}"
FORMS = {
    "gptq": scheme("gptq"),
    "awq": scheme("awq"),
    "packed": scheme("pack-quantized"),
    "int8": scheme(
        "int-quantized",
        activation_bits=8,
        activation_dtype="int",
        activation_scheme="dynamic",
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 Llama."""
    return make_tiny_model(
        tmp_path_factory.mktemp("model") / "tiny",
        hidden_size=128,
        intermediate_size=256,
    )


def settings_of(tmp_path: Path) -> Settings:
    """Settings with a store of this test's own."""
    return settings_from_environ(
        {"PATH": os.environ["PATH"]}, cache_dir=tmp_path / "store"
    )


def built(tmp_path: Path, model: Path, **changes: str) -> Path:
    """Build a recipe; the artifact's folder."""
    words = {
        "quantize": INT8,
        "release": "djl-lmi-0.36.0",
        "scheduler": "auto",
        "verify": SMALL,
        **changes,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(model=model, **words))
    settings = settings_of(tmp_path)
    plan = api.make_plan(api.load_recipe(file), settings)
    result = api.build(plan, settings)
    return api.write_artifact(result, "tiny", tmp_path / "out", settings)[0]


def _quiet(event: Event) -> None:
    """Nobody listens."""


def lay_out(checkpoint: Path, out: Path, *, older: bool) -> Path:
    """The stage, as the executor would run it."""
    out.mkdir(parents=True)
    job = Job(
        stage="t/checkpoint",
        params={"older": older},
        inputs={"checkpoint": checkpoint},
        out=out,
        state=out.parent / "state",
    )
    folder_worker.run(job, _quiet)
    return out


@pytest.mark.parametrize("name", FORMS)
def test_no_tensor_changes(name: str, model: Path, tmp_path: Path) -> None:
    """Codes and scales lie there byte by byte, and mean the same numbers."""
    source = tmp_path / "checkpoint"
    wanted = quantize_folder_as(model, source, FORMS[name])
    out = lay_out(source, tmp_path / "out", older=True)

    one, other = (load_file(place / "model.safetensors") for place in (source, out))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    with DequantizedReader(out) as reader:
        for layer, weight in wanted.items():
            found = reader.read(f"{layer}.weight").to(torch.float32)
            assert torch.allclose(found, weight, rtol=2**-7, atol=0)
    entry = json.loads((out / "config.json").read_bytes())
    assert entry["quantization_config"]
    assert entry["rope_theta"] == entry["rope_parameters"]["rope_theta"]
    newer = lay_out(source, tmp_path / "newer", older=False)
    same = [(place / "config.json").read_bytes() for place in (source, newer)]
    assert same[0] == same[1]


def test_weights_of_other_libraries_stay_behind(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    quantize_folder_as(model, source, FORMS["gptq"])
    for name in ("pytorch_model.bin", "ledger.json", "coverage.json"):
        (source / name).write_text("{}")

    out = lay_out(source, tmp_path / "out", older=False)

    assert not (out / "pytorch_model.bin").exists()
    assert not (out / "coverage.json").exists()
    assert (out / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.json", "{"), ("config.json", "[]"), ("model.safetensors", None)],
)
def test_a_broken_checkpoint_is_told(
    name: str, text: str | None, model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "checkpoint"
    quantize_folder_as(model, source, FORMS["gptq"])
    (source / name).unlink()
    if text is not None:
        (source / name).write_text(text)

    with pytest.raises(SourceInvalid) as caught:
        lay_out(source, tmp_path / "out", older=False)

    assert caught.value.code == "checkpoint.format"


def test_a_folder_is_packed_and_measured(model: Path, tmp_path: Path) -> None:
    """Weights are judged beside the float model, and the images are asked."""
    root = built(tmp_path, model)

    manifest = refuse_if_damaged(root)
    report: dict[str, Any] = json.loads((root.parent / "tiny.verify.json").read_bytes())
    assert report["drift"]["mean_kl"] < 0.1
    outcomes = {row["lmi"]: row["outcome"] for row in report["startup"]}
    assert outcomes["0.36.0"] == "loads"
    assert outcomes["0.28.0"] == "fails"
    assert manifest.compatibility["vllm"] == "0.23.1"
    text = (root / "serving.properties").read_text()
    assert "option.max_model_len=64\n" in text
    assert "option.quantize" not in text
    where = PublishSpec(to=str(root))
    rows = artifacts.start_up(where, settings_of(tmp_path), release="djl-lmi-0.36.0")
    assert [row.outcome for row in rows] == ["loads"]


def test_a_gate_is_judged_without_a_gpu(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GateFailed):
        built(
            tmp_path,
            model,
            verify="{num_samples: 1, max_seq_len: 16, gates: {max_mean_kl: 0.0000001}}",
        )


def test_float_weights_go_to_the_older_scheduler(model: Path, tmp_path: Path) -> None:
    """LMI-Dist's properties, and a configuration that transformers 4 reads."""
    root = built(
        tmp_path,
        model,
        quantize="{method: none}",
        release="djl-lmi-0.32.0",
        scheduler="lmi-dist",
    )

    text = (root / "serving.properties").read_text()
    assert "option.rolling_batch=lmi-dist\n" in text
    assert "option.mpi_mode=true\n" in text
    config = json.loads((root / "config.json").read_bytes())
    assert "rope_theta" in config
    assert "torch_dtype" in config


def test_other_properties_than_the_planned_are_found(
    model: Path, tmp_path: Path
) -> None:
    """The plan's own words are held against the file of the artifact."""
    root = built(tmp_path, model, quantize="{method: none}")
    job = Job(
        stage="t/verify",
        params={
            "release": "djl-lmi-0.36.0",
            "properties": {"option.max_model_len": "65"},
        },
        inputs={"package": root, "model": model},
        out=tmp_path / "verified",
        state=tmp_path / "state",
    )

    with pytest.raises(VerifyFailed) as caught:
        verify_vllm.run(job, _quiet)

    assert caught.value.code == "verify.other-properties"
    assert "`65`" in caught.value.message
