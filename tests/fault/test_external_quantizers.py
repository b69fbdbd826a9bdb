"""A library that fails, in the middle of a build by commands."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from typing import TYPE_CHECKING

import pytest

from desk import Desk
from lmi_build.catalog.toolchains import load_toolchains
from lmi_build.toolchains.environment import MARKER, SCHEMA, folder_of
from lmi_build.values.settings import Settings
from make_tiny_model import make_tiny_model
from wheels import make_wheel

if TYPE_CHECKING:
    from pathlib import Path

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize:
  method: gptq
  provider: gptqmodel
  group_size: 32
  calibration: {num_samples: 4, max_seq_len: 32}
bounds: {max_input_len: 32, max_output_len: 8}
compile: {backend: onnxruntime}
verify: {max_seq_len: 32}
"""
# A library of the same face that takes its fault from a file.
LIBRARY = """\
import os, pathlib, sys

class GPTQModel:
    @classmethod
    def load(cls, path, config, trust_remote_code):
        assert not trust_remote_code
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        return cls()

    def quantize(self, data, **options):
        print(f"layer 1 of 2: {len(data)} samples of {len(data[0]['input_ids'])}")
        exec((pathlib.Path(sys.prefix) / "fault.py").read_text())

    def save(self, out):
        (pathlib.Path(out) / "config.json").write_text("{}")
"""
CONFIG = """\
class GPTQConfig:
    def __init__(self, **options):
        self.options = options
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk with a toolchain whose library can be told how to fail."""
    root = tmp_path_factory.mktemp("desk")
    make_tiny_model(root / "model")
    (root / "recipe.yaml").write_text(RECIPE)
    own = root / "own.toml"
    own.write_text(
        f'[gptqmodel]\nsummary = "a sample"\npython = ["{HERE}"]\n'
        'steps = [{ packages = ["gptqmodel==1.0"] }]\nimports = ["gptqmodel"]\n'
    )
    pins = load_toolchains(own)["gptqmodel"]
    folder = folder_of(pins, Settings(cache_dir=root / "store"))
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    site = folder / "lib" / f"python{HERE}" / "site-packages"
    (site / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = make_wheel(
        root / "shelf",
        "gptqmodel",
        "1.0",
        files={"gptqmodel/__init__.py": LIBRARY, "gptqmodel/quantization.py": CONFIG},
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    marker = {
        "schema": SCHEMA,
        "pins": pins.pins,
        "python": HERE,
        "versions": pins.pins,
        "num_bytes": 1,
    }
    (folder / MARKER).write_text(json.dumps(marker))
    return Desk(root, {"LMI_BUILD_TOOLCHAINS": str(own)})


def environment(desk: Desk) -> Path:
    """The toolchain's folder."""
    found = list((desk.root / "store" / "toolchains").glob("gptqmodel-*"))
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("fault", "status", "code", "words"),
    [
        (
            "raise RuntimeError('not positive definite')",
            1,
            "provider.crashed",
            ["gptqmodel (gptqmodel 1.0)", "status 1", "not positive definite"],
        ),
        (
            "os.abort()",
            1,
            "provider.crashed",
            ["signal 6", "layer 1 of 2: 4 samples of 32"],
        ),
        ("os.kill(os.getpid(), 9)", 4, "stage.killed", ["gptqmodel", "memory"]),
        ("pass", 1, "provider.output", ["config.json"]),
    ],
    ids=["raises", "aborts", "killed", "writes-nothing"],
)
def test_library_that_fails_is_named_with_its_last_words(
    desk: Desk, fault: str, status: int, code: str, words: list[str]
) -> None:
    """Who, which version, how it ended and what it said; nothing is kept of it."""
    (environment(desk) / "fault.py").write_text(fault)

    done = desk.run("build", "recipe.yaml", "--until", "quantize")
    planned = desk.run("plan", "recipe.yaml", "--output", "json").json

    assert done.status == status, done.err
    assert f"error[{code}]" in done.err
    for word in words:
        assert word in done.err
    state = {row["kind"]: row["status"] for row in planned["stages"]}
    assert state["fetch"] == "cached"
    assert state["quantize"] != "cached"


def test_environment_that_moved_is_refused_by_the_worker(desk: Desk) -> None:
    """A version changed by hand after installing: the key would not be true."""
    site = next((environment(desk) / "lib").glob("python*/site-packages"))
    metadata = site / "gptqmodel-1.0.dist-info" / "METADATA"
    before = metadata.read_text()
    metadata.write_text(before.replace("Version: 1.0", "Version: 1.1"))

    done = desk.run("build", "recipe.yaml", "--until", "quantize")
    metadata.write_text(before)

    assert done.status == 3
    assert "error[toolchain.moved]" in done.err
    assert "gptqmodel 1.1 instead of 1.0" in done.err
