"""Looking at recipes must stay cheap: no heavy library in the parent process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "boto3",
    "botocore",
    "onnxruntime",
    "onnxruntime_genai",
    "onnx",
    "tokenizers",
    "safetensors",
    "gguf",
    "huggingface_hub",
    "openvino",
    "tensorrt_llm",
    "rich",
}


def imported_by(*argv: str, cwd: Path) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a command."""
    code = (
        "import sys, json\n"
        "from lmi_build.cli.main import run\n"
        f"status = run({list(argv)!r})\n"
        "names = sorted({n.partition('.')[0] for n in sys.modules})\n"
        "print('\\n' + json.dumps([status, names]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    status, names = json.loads(done.stdout.splitlines()[-1])
    assert status == 0, done.stderr
    return set(names)


@pytest.mark.parametrize("argv", [["--help"], ["build", "--help"], ["cache", "path"]])
def test_help_imports_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    """Help costs click and nothing else: not even the validation library."""
    found = imported_by(*argv, cwd=tmp_path)

    assert found & (HEAVY | {"pydantic", "ruamel"}) == set()


def test_validate_plan_and_cached_lookups_import_nothing_heavy(tmp_path: Path) -> None:
    """`validate`, `plan` and `why` of a local model run without the toolchains."""
    from make_tiny_model import make_tiny_model

    make_tiny_model(tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "schema: lmi-build/v1\nname: tiny\nmodel: {source: ./model}\n"
        "quantize: {method: gptq, group_size: 32,"
        " calibration: {num_samples: 4, max_seq_len: 32}}\n"
        "bounds: {max_input_len: 32, max_output_len: 16}\n"
        "compile: {backend: onnxruntime}\nverify: {max_seq_len: 32}\n"
    )
    store = ["--cache-dir", str(tmp_path / "store")]

    for command in ("validate", "plan", "why"):
        found = imported_by(command, str(recipe), *store, cwd=tmp_path)
        assert found & HEAVY == set(), command
