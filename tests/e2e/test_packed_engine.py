"""A real engine of a tiny model: compiled, packed, verified, served, broken."""

from __future__ import annotations

import http.client
import json
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from lmi_build.backends.onnxruntime import PROVIDER, REQUIREMENTS
from lmi_build.errors import GateFailed, VerifyFailed
from lmi_build.events import StageNote
from lmi_build.package.handler_files import handler_digest
from lmi_build.package.stage import ENTRY as PACKAGE
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import geometry_from_config
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import Gates, VerifySpec
from lmi_build.verify.integrity import check_tree, read_manifest
from lmi_build.verify.stage import ENTRY as VERIFY
from lmi_build.verify.stage import verify_params
from make_tiny_model import make_tiny_model
from packed import HOST, sample_facts, sample_params, sample_recipe
from stage_runs import run_stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.values.recipe import Recipe

pytestmark = pytest.mark.slow

SERVE = (
    "import sys; from pathlib import Path; from lmi_build.serve.server import serve;"
    "serve(Path(sys.argv[1]), '127.0.0.1', 0)"
)
FLOAT = QuantScheme(
    weight_bits=16,
    weight_dtype="float",
    group_size=-1,
    sym=True,
    activation_bits=16,
    packing="none",
)


def _recipe(**gates: float) -> Recipe:
    return sample_recipe(
        bounds=Bounds(max_input_len=48, max_output_len=16, max_batch_size=2),
        verify=VerifySpec(num_samples=3, max_seq_len=48, gates=Gates(**gates)),
    )


@dataclass
class Built:
    """Where the stages' results lie."""

    model: Path
    package: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Compile and package a tiny float model with the real workers."""
    root = tmp_path_factory.mktemp("built")
    model = make_tiny_model(root / "model")
    config = json.loads((model / "config.json").read_bytes())
    facts = sample_facts(geometry=geometry_from_config(config), config=config)
    recipe = _recipe()
    params = PROVIDER.lower(recipe, facts, FLOAT)
    inputs = {"model": model, "checkpoint": model}
    run_stage(PROVIDER.info.entry, params, inputs, root / "engine")
    names = REQUIREMENTS.values()
    serving = PROVIDER.serving(
        recipe, facts, FLOAT, HOST, {n: metadata.version(n) for n in names}
    )
    params = sample_params(
        recipe=recipe,
        facts=facts,
        serving=serving,
        architecture=platform.machine(),
        handler_digest=handler_digest(serving.handler),
    )
    run_stage(PACKAGE, params, {**inputs, "engine": root / "engine"}, root / "package")
    return Built(model, root / "package")


def _verify(built: Built, package: Path, out: Path, **gates: float) -> dict[str, Any]:
    inputs = {"model": built.model, "package": package}
    events = run_stage(VERIFY, verify_params(_recipe(**gates)), inputs, out)
    assert any(isinstance(event, StageNote) for event in events)
    return dict(json.loads((out / "verify.json").read_bytes()))


def test_packed_tree_is_whole(built: Built) -> None:
    """The real engine's package passes its own check."""
    assert check_tree(built.package) == ()


def test_float_engine_is_the_float_model(built: Built, tmp_path: Path) -> None:
    """
    Verify measures no drift on an engine that was not quantized, and meets its gates.

    Tolerance: float32 sums in another order move these logits by about 1e-5.
    """
    gates = {"max_mean_kl": 1e-6, "min_top1_agreement": 1.0}
    report = _verify(built, built.package, tmp_path / "verify", **gates)

    assert report["manifest"] == read_manifest(built.package).digest
    assert report["drift"]["max_abs_logit_error"] < 1e-3
    assert report["drift"]["num_tokens"] == 3 * 48
    assert report["bounds"] == {
        "max_input_len": {"accepted": 48, "refused": 49},
        "max_output_len": {"refused": 17},
    }
    assert [gate["met"] for gate in report["gates"]] == [True, True]
    assert report["tokenizer"]["identical"] is True
    assert len(report["answers"][0]["token_ids"]) == 16


def test_answers_are_repeatable(built: Built, tmp_path: Path) -> None:
    """Two processes give the same report."""
    first = _verify(built, built.package, tmp_path / "a")
    second = _verify(built, built.package, tmp_path / "b")

    assert first["answers"] == second["answers"]


def test_missed_gate_fails_the_stage_with_numbers(built: Built, tmp_path: Path) -> None:
    """A perplexity ratio below one cannot be met by an honest engine."""
    with pytest.raises(GateFailed) as caught:
        _verify(built, built.package, tmp_path / "v", max_perplexity_ratio=0.5)

    assert caught.value.code == "verify.gate-missed"
    assert "max_perplexity_ratio: 1 [1, 1], allowed at most 0.5" in caught.value.message
    assert "KL 0.0000" in caught.value.message


def test_damaged_weights_never_load(built: Built, tmp_path: Path) -> None:
    """One flipped bit in the engine ends verify before the engine is opened."""
    copy = tmp_path / "copy"
    shutil.copytree(built.package, copy)
    weights = copy / "engine" / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)

    with pytest.raises(VerifyFailed) as caught:
        _verify(built, copy, tmp_path / "v")
    assert caught.value.code == "verify.file-changed"
    assert "engine/model.onnx.data" in caught.value.message


def test_another_tokenizer_is_found(built: Built, tmp_path: Path) -> None:
    """A model whose tokenizer is not the engine's does not pass."""
    other = make_tiny_model(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_bytes())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:40]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(VerifyFailed) as caught:
        _verify(Built(other, built.package), built.package, tmp_path / "v")
    assert caught.value.code == "verify.tokenizer-differs"


@pytest.fixture(scope="module")
def port(built: Built) -> Iterator[int]:
    """The artifact served by a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(built.package)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    yield urlsplit(ready["url"]).port or 0
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait(timeout=30) == 0


def _post(port: int, path: str, body: object) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"content-type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_streams_say_what_whole_answers_say(port: int) -> None:
    """Greedy text is the same in one piece, as lines, and as chat events."""
    asked = {"inputs": "one, two", "parameters": {"max_new_tokens": 8, "details": True}}
    _, whole = _post(port, "/invocations", asked)
    _, lines = _post(port, "/invocations", {**asked, "stream": True})
    *_, last = [json.loads(line) for line in lines.splitlines()]
    answer = json.loads(whole)

    assert last["generated_text"] == answer["generated_text"]
    assert len(lines.splitlines()) == answer["details"]["generated_tokens"]

    messages = [{"role": "user", "content": "one, two"}]
    chat = {"messages": messages, "max_tokens": 8, "temperature": 0}
    _, whole = _post(port, "/v1/chat/completions", chat)
    _, events = _post(port, "/v1/chat/completions", {**chat, "stream": True})
    chunks = [e.removeprefix("data: ") for e in events.decode().split("\n\n")[:-2]]
    text = "".join(
        json.loads(chunk)["choices"][0]["delta"]["content"] for chunk in chunks
    )
    assert text == json.loads(whole)["choices"][0]["message"]["content"]


def test_bounds_hold_over_http(port: int) -> None:
    """The real handler names bound and number; at the bound it answers."""
    at = {"inputs": "a" * 48, "parameters": {"max_new_tokens": 1}}
    over = {"inputs": " ".join("abcdefgh" * 9), "parameters": {"max_new_tokens": 1}}
    many = {"inputs": "a", "parameters": {"max_new_tokens": 17}}
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 17}

    assert _post(port, "/invocations", at)[0] == 200
    status, body = _post(port, "/invocations", over)
    assert (status, b"max_input_len = 48" in body) == (413, True)
    status, body = _post(port, "/invocations", many)
    assert (status, b"max_output_len = 16" in body) == (413, True)
    status, body = _post(port, "/v1/chat/completions", chat)
    assert (status, b"max_output_len = 16" in body) == (400, True)


def test_same_seed_gives_the_same_draw(port: int) -> None:
    """Sampling over HTTP is repeatable."""
    chat = {
        "messages": [{"role": "user", "content": "one"}],
        "max_tokens": 12,
        "temperature": 1.5,
        "seed": 11,
    }
    answers = [
        json.loads(_post(port, "/v1/chat/completions", body)[1])["choices"][0]
        for body in (chat, chat, {**chat, "seed": 12})
    ]

    assert answers[0] == answers[1]
    assert answers[0] != answers[2]
