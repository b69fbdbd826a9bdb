"""
Other projects' quantizers, run by recipes up to `quantize`, each in its toolchain.

Installing takes minutes and gigabytes, so these tests run where the toolchains are:
`LMI_BUILD_TEST_TOOLCHAINS` names a store that has them; what is missing there is
installed when `LMI_BUILD_TEST_INSTALL_TOOLCHAINS=1` is set, and skipped otherwise.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from desk import Desk
from lmi_build.checkpoint.formats.codec import decode, weight_of
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.ledger import read_ledger
from lmi_build.checkpoint.reader import CheckpointReader
from make_tiny_model import make_tiny_model

pytestmark = pytest.mark.e2e

STORE = os.environ.get("LMI_BUILD_TEST_TOOLCHAINS", "")
INSTALL = os.environ.get("LMI_BUILD_TEST_INSTALL_TOOLCHAINS", "") == "1"
# Relative squared error of the weights: rounding to nearest gives half of these.
BOUNDS = {2: 0.6, 4: 0.05, 8: 0.001}


@dataclass(frozen=True)
class Case:
    """One run: who, and what the recipe says."""

    provider: str
    quantize: str
    packing: str

    @property
    def name(self) -> str:
        """For the test's name."""
        words = self.quantize.replace(":", "-").replace(",", "").split()
        return "-".join([self.provider, *words[1:]])


GPTQ = "method: gptq, group_size: 32"
AWQ = "method: awq, group_size: 32, sym: false"
CASES = [
    Case("llmcompressor", f"{GPTQ}", "pack-quantized"),
    Case("llmcompressor", f"{GPTQ}, sym: false, desc_act: false", "pack-quantized"),
    Case("llmcompressor", f"{AWQ}", "pack-quantized"),
    Case("llmcompressor", f"{AWQ}, then_gptq: true", "pack-quantized"),
    Case("llmcompressor", "method: rtn, bits: 4, group_size: 32", "pack-quantized"),
    Case("llmcompressor", "method: int8", "pack-quantized"),
    Case("llmcompressor", "method: int8, activations: dynamic", "int-quantized"),
    Case(
        "llmcompressor", "method: smoothquant, smoothing_strength: 0.5", "int-quantized"
    ),
    Case("llmcompressor", "method: fp8", "float-quantized"),
    Case("llmcompressor", "method: fp8, activations: static", "float-quantized"),
    Case("gptqmodel", f"{GPTQ}", "gptq"),
    Case("gptqmodel", f"{GPTQ}, sym: false, desc_act: false", "gptq"),
    Case("gptqmodel", f"{GPTQ}, bits: 8, format: gptq_v2", "gptq_v2"),
    Case("gptqmodel", "method: gptq, group_size: -1, ignore: ['*.v_proj']", "gptq"),
    Case(
        "modelopt",
        "method: fp8, granularity: tensor, activations: static",
        "float-quantized",
    ),
    Case("autoawq", f"{AWQ}", "awq"),
    Case("autoawq", f"{AWQ}, clip: false", "awq"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose widths every library takes."""
    folder = tmp_path_factory.mktemp("toolchains") / "model"
    make_tiny_model(folder, hidden_size=128, intermediate_size=256)
    return folder


@pytest.fixture
def desk(tmp_path: Path, model: Path) -> Desk:
    """A desk whose store has the toolchains of `STORE`."""
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "store").mkdir()
    if STORE:
        (tmp_path / "store" / "toolchains").symlink_to(Path(STORE) / "toolchains")
    return Desk(tmp_path)


def need(desk: Desk, name: str) -> None:
    """Install a toolchain, or skip with the reason."""
    listed = desk.run("toolchain", "list", "--output", "json").json
    status = {row["name"]: row["status"] for row in listed}[name]
    if status == "installed":
        return
    if not (STORE and INSTALL):
        pytest.skip(
            f"toolchain {name} is {status}; set LMI_BUILD_TEST_TOOLCHAINS to a store"
            " that has it, and LMI_BUILD_TEST_INSTALL_TOOLCHAINS=1 to install it"
        )
    done = desk.run("toolchain", "install", name)
    assert done.status == 0, done.err


def recipe(desk: Desk, case: Case) -> str:
    """Write the case's recipe."""
    calibration = "calibration: {num_samples: 16, max_seq_len: 64}"
    free = ("method: rtn", "method: int8", "method: fp8")
    said = case.quantize
    if not said.startswith(free) or "static" in said:
        said = f"{said}, {calibration}"
    (desk.root / "recipe.yaml").write_text(
        "schema: lmi-build/v1\nname: tiny\nmodel: {source: ./model}\n"
        f"quantize: {{provider: {case.provider}, {said}}}\n"
        "bounds: {max_input_len: 32, max_output_len: 16}\n"
        "compile: {backend: onnxruntime}\nverify: {max_seq_len: 32}\n"
    )
    return "recipe.yaml"


def result_of(desk: Desk, built: Any) -> Path:
    """The folder of the stage `quantize`, laid out from the store."""
    from lmi_build.store.store import Store

    store = Store(desk.root / "store")
    key = next(row["key"] for row in built["stages"] if row["kind"] == "quantize")
    found = store.lookup(key)
    assert found is not None
    out = desk.root / "result"
    store.materialize(found, out)
    return out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recipe_runs_up_to_quantize(case: Case, desk: Desk, model: Path) -> None:
    """The result is in the planned format, near its source, and all accounted for."""
    need(desk, case.provider)

    done = desk.run(
        "build", recipe(desk, case), "--until", "quantize", "-v", "--output", "json"
    )

    assert done.status == 0, done.err
    out = result_of(desk, done.json)
    config = json.loads((out / "config.json").read_bytes())
    source = json.loads((model / "config.json").read_bytes())
    scheme = read_scheme(config.pop("quantization_config"))
    assert config == source
    assert scheme.packing == case.packing
    names = {path.name for path in out.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "ledger.json"} <= names
    smooths = case.quantize.startswith(("method: awq", "method: smoothquant"))
    with CheckpointReader(out) as made, CheckpointReader(model) as before:
        rows = {str(row.source): row for row in read_ledger(out)}
        assert set(rows) == set(before.tensors)
        for name, row in rows.items():
            if row.action == "copied":
                assert torch.equal(made.read(name), before.read(name))
            elif row.action == "smoothed":
                assert smooths
                assert name.endswith("norm.weight")
            else:
                tensors = {r.name: made.read(r.name) for r in row.results}
                codes = decode(tensors, name.removesuffix(".weight"), scheme)
                assert row.error is not None
                assert row.error < BOUNDS[scheme.weight_bits]
                if not smooths:
                    w_OI = before.read(name).float()
                    gap = float((weight_of(codes) - w_OI).square().sum())
                    power = float(w_OI.square().sum())
                    assert gap / power == pytest.approx(row.error, rel=1e-4)
    quantized = {n for n, row in rows.items() if row.action == "quantized"}
    kept = 2 if "v_proj" in case.quantize else 0
    assert len(quantized) == 14 - kept


def test_missing_toolchain_blocks_before_any_work(tmp_path: Path, model: Path) -> None:
    """Exit 3 with the command to run; a plan is made all the same."""
    (tmp_path / "model").symlink_to(model)
    desk = Desk(tmp_path)
    file = recipe(desk, CASES[0])

    planned = desk.run("plan", file, "--output", "json")
    built = desk.run("build", file, "--until", "quantize")

    status = {row["kind"]: row["status"] for row in planned.json["stages"]}
    assert planned.status == 0, planned.err
    assert status["quantize"] == "blocked"
    assert built.status == 3
    assert "error[tool.missing]" in built.err
    assert "lmi-build toolchain install llmcompressor" in built.err
    assert not list((tmp_path / "store").glob("**/*.safetensors"))


def test_key_is_the_same_before_and_after_installing(
    desk: Desk, tmp_path: Path
) -> None:
    """A plan that was made where nothing is installed names the same work."""
    need(desk, "autoawq")
    file = recipe(desk, CASES[-1])
    after = desk.run("plan", file, "--output", "json").json
    (tmp_path / "store" / "toolchains").unlink()
    before = desk.run("plan", file, "--output", "json").json

    def keys(plan: Any) -> dict[str, str]:
        return {row["kind"]: row["key"] for row in plan["stages"]}

    assert keys(before) == keys(after)
