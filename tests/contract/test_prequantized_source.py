"""A model that came quantized goes the whole way: plan, engine, comparison."""

from __future__ import annotations

import inspect
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")

import lmi_build
from formats import quantize_folder_as, scheme
from lmi_build.checkpoint.formats.dequantized import DequantizedReader
from lmi_build.errors import LmiBuildError, RecipeInvalid
from lmi_build.plan import planner
from lmi_build.values.recipe import CalibrationSpec, QuantSpec
from lmi_build.values.settings import Settings
from lmi_build.verify.streamed import streamed_logits
from make_tiny_model import make_tiny_model
from onnxruntime_engines import (
    EXACT,
    RELATIVE_ERROR,
    compile_engine,
    load_engine,
    reference,
    relative_error,
)
from stage_jobs import quantize

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.result import BuildResult

IDS = [5, 17, 300, 42, 7, 9, 411, 23]
MAX_KL = 1e-6
RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {{source: {model}}}
quantize: {{method: none}}
bounds: {{max_input_len: 32, max_output_len: 8, max_batch_size: 2}}
compile: {{backend: onnxruntime, options: {{accuracy_level: 0}}}}
verify:
  prompts: [hello]
  max_new_tokens: 4
  num_samples: 2
  max_seq_len: 32
  gates: {{max_mean_kl: {max_kl}}}
"""
FORMS = {
    "gptq": scheme("gptq"),
    "awq": scheme("awq"),
    "int8": scheme("int-quantized"),
    "fp8": scheme("float-quantized"),
}
WIRED = "source_scheme" in inspect.getsource(planner)
wired = pytest.mark.skipif(not WIRED, reason="the planner takes sources for float ones")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float model behind all of them."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def build(root: Path, model: Path, **recipe: str) -> BuildResult:
    """Plan and build a recipe by the library's own functions."""
    file = root / "recipe.yaml"
    text = RECIPE.format(model=model, max_kl=MAX_KL)
    for old, new in recipe.items():
        text = text.replace(f"{old}: ", f"{old}: {new} #", 1)
    file.write_text(text)
    keep = {x: os.environ[x] for x in ("PATH", "LD_LIBRARY_PATH") if x in os.environ}
    settings = Settings(
        cache_dir=root / "store", offline=True, threads=1, worker_environment=keep
    )
    plan = lmi_build.make_plan(lmi_build.load_recipe(file), settings)
    result = lmi_build.build(plan, settings)
    lmi_build.write_artifact(result, "tiny", root / "out", settings)
    return result


@pytest.mark.parametrize("name", FORMS)
def test_an_engine_computes_what_the_dequantized_checkpoint_means(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    """The reference without a float model: every weight as its codes say."""
    dense = quantize_folder_as(tiny, tmp_path / "quantized", FORMS[name])
    out, _ = compile_engine(tmp_path / "quantized", tmp_path / "job", **EXACT)
    engine = load_engine(out)

    assert relative_error(reference(tiny, dense), engine, IDS) < RELATIVE_ERROR
    with DequantizedReader(tmp_path / "quantized") as reader:
        (logits_TV,) = streamed_logits(tiny, [IDS], threads=1, reader=reader)
    apart = np.abs(logits_TV - engine.logits(IDS)).max()
    assert apart < RELATIVE_ERROR * np.abs(logits_TV).max()


@wired
def test_what_our_own_stage_made_builds_and_verifies_as_a_source(
    tiny: Path, tmp_path: Path
) -> None:
    """The manifest says what it is; verify compares with what its codes mean."""
    calibration = CalibrationSpec(num_samples=4, max_seq_len=32)
    spec = QuantSpec(method="gptq", bits=4, group_size=32, calibration=calibration)
    model = quantize(tmp_path / "stage", tiny, spec)

    build(tmp_path, model)

    manifest: dict[str, Any] = json.loads(
        (tmp_path / "out" / "tiny" / "manifest.json").read_bytes()
    )
    assert manifest["scheme"]["packing"] == "gptq"
    assert manifest["scheme"]["group_size"] == spec.group_size
    report = json.loads((tmp_path / "out" / "tiny.verify.json").read_bytes())
    # Rounding of float32 alone: weights of the engine are the codes' own.
    assert report["drift"]["mean_kl"] < MAX_KL


@wired
def test_a_second_quantization_is_refused_by_the_plan(
    tiny: Path, tmp_path: Path
) -> None:
    """At the recipe's line, before anything is built."""
    quantize_folder_as(tiny, tmp_path / "quantized", FORMS["gptq"])

    with pytest.raises(RecipeInvalid) as caught:
        build(
            tmp_path,
            tmp_path / "quantized",
            quantize="{method: rtn, bits: 4, group_size: 32}",
        )

    (problem,) = caught.value.problems
    assert problem.code == "quantize.already-quantized"
    assert problem.span is not None
    assert not (tmp_path / "out").exists()


@wired
def test_a_configuration_of_other_weights_is_refused_by_the_plan(
    tiny: Path, tmp_path: Path
) -> None:
    """Nothing is built of what would be decoded wrongly."""
    quantize_folder_as(tiny, tmp_path / "quantized", FORMS["gptq"])
    file = tmp_path / "quantized" / "config.json"
    config = json.loads(file.read_bytes())
    config["quantization_config"]["bits"] = 8
    file.write_text(json.dumps(config))

    with pytest.raises(LmiBuildError) as caught:
        build(tmp_path, tmp_path / "quantized")

    assert caught.value.code == "checkpoint.format"
    assert "8 bits" in caught.value.message
