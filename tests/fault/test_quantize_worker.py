"""The quantize stage on tiny models: whole, repeatable, resumable, clear in failure."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.folder_facts import folder_facts
from calibration_data import bring, pinned
from lmi_build.checkpoint.ledger import read_ledger
from lmi_build.errors import LmiBuildError, is_disk_full
from lmi_build.events import Event, StageNote, StageProgress, ignore
from lmi_build.numerics.grids import dequantize
from lmi_build.numerics.packing import unpack_rows, unpack_zeros
from lmi_build.quantizers import builtin_worker, embedding, finite
from lmi_build.quantizers.builtin import PROVIDER
from lmi_build.spi import Job
from lmi_build.values.recipe import CalibrationSpec, QuantSpec
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

GPTQ = QuantSpec(
    method="gptq",
    bits=4,
    group_size=32,
    calibration=CalibrationSpec(num_samples=8, max_seq_len=64),
)
INT8 = QuantSpec(method="int8")


def make_job(root: Path, model: Path, spec: QuantSpec) -> Job:
    out = root / "out"
    out.mkdir(parents=True)
    inputs = {"model": model}
    if spec.calibration is not None:
        calibration = pinned(spec.calibration, root)
        spec = replace(spec, calibration=calibration)
        if calibration.facts is not None:
            inputs["calibration"] = bring(calibration.facts, root)
    return Job(
        stage="tiny/quantize",
        params=json.loads(json.dumps(PROVIDER.lower(spec, folder_facts(model)))),
        inputs=inputs,
        out=out,
        state=root / "state",
        settings={"threads": 1, **PROVIDER.job_settings(spec)},
    )


def quantize(root: Path, model: Path, spec: QuantSpec) -> Path:
    job = make_job(root, model, spec)
    builtin_worker.run(job, ignore)
    return job.out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def restored(folder: Path) -> dict[str, Tensor]:
    """Every weight of a result as float, by its source name."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    floats: dict[str, Tensor] = {}
    for name, value in tensors.items():
        base, _, kind = name.rpartition(".")
        if kind == "qweight":
            code = unpack_rows(value, bits=config["bits"])
            zero = unpack_zeros(tensors[f"{base}.qzeros"], bits=config["bits"])
            scale = tensors[f"{base}.scales"].float()
            floats[f"{base}.weight"] = dequantize(code, scale, zero).T
        elif kind in {"weight", "bias"}:
            floats[name] = value.float()
    return floats


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("llama"), num_layers=3)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(
    ("spec", "bound"),
    [
        (GPTQ, 0.03),
        (replace(GPTQ, sym=False, desc_act=False), 0.03),
        (replace(GPTQ, bits=8, group_size=-1), 2e-4),
        (replace(GPTQ, bits=3), 0.12),
        (INT8, 2e-4),
    ],
)
def test_results_are_close_and_whole(
    architecture: str, spec: QuantSpec, bound: float, tmp_path: Path
) -> None:
    """
    Every weight comes back within its bits' error; everything else is unchanged.

    The bound is the relative squared error of rounding Gaussian weights, doubled.
    """
    model = make_tiny_model(
        tmp_path / "model", architecture=architecture, tie_word_embeddings=False
    )
    out = quantize(tmp_path, model, spec)
    source = load_file(model / "model.safetensors")
    result = restored(out)

    assert set(result) == set(source)
    rows = {row.source: row for row in read_ledger(out)}
    assert set(rows) == set(source)
    for name, value in source.items():
        if rows[name].action == "copied":
            assert torch.equal(result[name], value.float())
            continue
        miss = (
            result[name] - value.float()
        ).square().sum() / value.float().square().sum()
        # GPTQ trades error of weights for error of outputs; ledger has the latter.
        assert float(miss) < 2 * bound
        error = rows[name].error
        assert error is not None
        assert 0 < error < bound
    assert sum(row.action == "quantized" for row in rows.values()) == 2 * 7


@pytest.mark.parametrize("spec", [GPTQ, INT8])
def test_estimate_is_the_size_on_disk(
    spec: QuantSpec, llama: Path, tmp_path: Path
) -> None:
    """The bytes of the weights are known exactly before any work."""
    out = quantize(tmp_path, llama, spec)

    assert PROVIDER.estimate(spec, folder_facts(llama)).disk_bytes == sum(
        path.stat().st_size for path in out.glob("*.safetensors")
    )


def test_config_tells_readers_what_they_need(llama: Path, tmp_path: Path) -> None:
    """`quantization_config` names the format; the other files are carried over."""
    out = quantize(tmp_path, llama, replace(GPTQ, ignore=("lm_head", "*.down_proj")))
    config = json.loads((out / "config.json").read_text())
    scheme = config.pop("quantization_config")

    assert config == json.loads((llama / "config.json").read_text())
    assert (scheme["quant_method"], scheme["bits"]) == ("gptq", 4)
    assert scheme["desc_act"] is False
    assert "-:^model\\.layers\\.0\\.mlp\\.down_proj$" in scheme["dynamic"]
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (llama / name).read_bytes()


def test_groups_are_in_order_on_disk(llama: Path, tmp_path: Path) -> None:
    """With act-order, `g_idx` is still i // group_size: no reader permutes."""
    out = quantize(tmp_path, llama, GPTQ)
    tensors = load_file(out / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.g_idx"

    assert tensors[name].tolist() == [i // 32 for i in range(128)]


@pytest.mark.parametrize("spec", [GPTQ, INT8])
def test_same_inputs_make_same_bytes(
    spec: QuantSpec, llama: Path, tmp_path: Path
) -> None:
    """Two runs with one thread count differ in no byte of any file."""
    first = contents(quantize(tmp_path / "a", llama, spec))
    second = contents(quantize(tmp_path / "b", llama, spec))

    assert first == second


class Stop(Exception):
    """Stands for whatever ends a worker early."""


@pytest.mark.parametrize("spec", [GPTQ, INT8])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    done: int, spec: QuantSpec, llama: Path, tmp_path: Path
) -> None:
    """Stopped after any block, the next attempt does only the rest."""
    whole = contents(quantize(tmp_path / "whole", llama, spec))
    job = make_job(tmp_path / "cut", llama, spec)

    def stop(event: Event) -> None:
        if isinstance(event, StageProgress) and event.done == done:
            raise Stop

    with pytest.raises(Stop):
        builtin_worker.run(job, stop)
    events: list[Event] = []
    builtin_worker.run(job, events.append)

    assert [e.done for e in events if isinstance(e, StageProgress)] == list(
        range(done + 1, 4)
    )
    assert [e.code for e in events if isinstance(e, StageNote)] == ["quantize.resumed"]
    assert contents(job.out) == whole


@pytest.mark.parametrize("victim", ["block-00000", "activations", "progress", "cut"])
def test_damaged_state_is_not_used(victim: str, llama: Path, tmp_path: Path) -> None:
    """A flipped bit or a missing piece in the state means starting over, not wrong."""
    whole = contents(quantize(tmp_path / "whole", llama, GPTQ))
    job = make_job(tmp_path / "cut", llama, GPTQ)

    def stop(event: Event) -> None:
        if isinstance(event, StageProgress) and event.done == 2:
            raise Stop

    with pytest.raises(Stop):
        builtin_worker.run(job, stop)
    if victim == "cut":
        (job.state / "block-00001.safetensors").unlink()
    else:
        (path,) = job.state.glob(f"{victim}*")
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    events: list[Event] = []
    builtin_worker.run(job, events.append)

    assert [e.done for e in events if isinstance(e, StageProgress)] == [1, 2, 3]
    assert contents(job.out) == whole


def test_state_of_other_work_is_not_used(llama: Path, tmp_path: Path) -> None:
    """A state folder that belongs to other parameters is ignored."""
    job = make_job(tmp_path / "a", llama, GPTQ)
    builtin_worker.run(job, ignore)
    other = make_job(tmp_path / "b", llama, replace(GPTQ, damp_percent=0.05))
    events: list[Event] = []
    builtin_worker.run(replace(other, state=job.state), events.append)

    assert not any(isinstance(e, StageNote) for e in events)


WORKER = """
import json, sys
from pathlib import Path
from lmi_build.quantizers import builtin_worker, finite
from lmi_build.spi import Job

document = json.loads(sys.argv[1])
paths = {name: Path(document[name]) for name in ("out", "state")}
job = Job(
    stage="tiny/quantize",
    params=document["params"],
    inputs={"model": Path(document["model"])},
    settings=document["settings"],
    **paths,
)
builtin_worker.run(job, lambda event: print(event.done, flush=True))
"""


def test_a_killed_worker_goes_on_to_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    """SIGKILL after the first block: the next process ends with the same bytes."""
    whole = contents(quantize(tmp_path / "whole", llama, GPTQ))
    job = make_job(tmp_path / "cut", llama, GPTQ)
    document = {
        "params": job.params,
        "model": str(llama),
        "out": str(job.out),
        "state": str(job.state),
        "settings": job.settings,
    }
    command = [sys.executable, "-c", WORKER, json.dumps(document)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    builtin_worker.run(job, ignore)

    assert contents(job.out) == whole


def test_a_disk_that_fills_up_keeps_the_finished_blocks(
    llama: Path, tmp_path: Path
) -> None:
    """No file may grow after the first block: told as a full disk, then gone on."""
    whole = contents(quantize(tmp_path / "whole", llama, GPTQ))
    job = make_job(tmp_path / "cut", llama, GPTQ)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(event: Event) -> None:
        if isinstance(event, StageProgress) and event.done == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    try:
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            builtin_worker.run(job, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    events: list[Event] = []
    builtin_worker.run(job, events.append)

    assert is_disk_full(caught.value)
    done = [event.done for event in events if isinstance(event, StageProgress)]
    assert done in ([2, 3], [3])
    assert [e.code for e in events if isinstance(e, StageNote)] == ["quantize.resumed"]
    assert contents(job.out) == whole


def broken(model: Path, name: str, value: Any) -> None:
    """Change one tensor of a model on disk."""
    tensors = load_file(model / "model.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("spec", [GPTQ, INT8])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "num_values"),
    [
        ("model.layers.1.mlp.up_proj.weight", 8192),
        ("model.layers.1.input_layernorm.weight", 64),
        ("model.embed_tokens.weight", 32768),
    ],
)
def test_broken_weights_are_named(
    spec: QuantSpec, value: float, name: str, num_values: int, tmp_path: Path
) -> None:
    """A weight that is no number ends the stage with the tensor's name."""
    model = make_tiny_model(tmp_path / "model")
    broken(model, name, value)

    with pytest.raises(LmiBuildError) as caught:
        quantize(tmp_path, model, spec)

    assert caught.value.code == "quantize.weight-not-finite"
    assert f"`{name}` has 1 of {num_values}" in caught.value.message


def test_scales_without_a_place_are_named(tmp_path: Path) -> None:
    """Weights too large for the format's scales end the stage with the layer's name."""
    model = make_tiny_model(tmp_path / "model")
    name = "model.layers.1.mlp.up_proj"
    broken(model, f"{name}.weight", 1e38)
    spec = replace(INT8, format="gptq", group_size=32)

    with pytest.raises(LmiBuildError) as caught:
        quantize(tmp_path, model, spec)

    assert caught.value.code == "quantize.format"
    assert f"`{name}`" in caught.value.message
    assert caught.value.hints


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model.embed_tokens.weight", float("inf"), "sample 0 is the first"),
        (
            "model.layers.0.input_layernorm.weight",
            3.3e38,
            "sample 0 is the first, inside the block",
        ),
    ],
)
def test_broken_activations_name_layer_and_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float, words: str
) -> None:
    """What enters a block is no number for some sample, or becomes none inside."""
    # As if it had become infinite on the way: weights are looked at before.
    monkeypatch.setattr(finite, "check_finite", lambda *_: None)
    model = make_tiny_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[name][:] = value
    save_file(tensors, model / "model.safetensors")

    with pytest.raises(LmiBuildError) as caught:
        quantize(tmp_path, model, GPTQ)

    assert caught.value.code == "quantize.not-finite"
    assert "model.layers.0.self_attn.q_proj" in caught.value.message
    assert words in caught.value.message


def test_overflow_inside_a_block_names_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One channel that only one sample of the second chunk has overflows in the MLP."""
    spoilt = 13
    real = embedding.embed

    def embed(*args: Any) -> Callable[[slice], Tensor]:
        enter = real(*args)

        def one_channel(part: slice) -> Tensor:
            x_SLD = enter(part).clone()
            x_SLD[..., 0] = 0
            for place, sample in enumerate(range(part.start, part.stop)):
                if sample == spoilt and place < len(x_SLD):
                    x_SLD[place, :, 0] = 100
            return x_SLD

        return one_channel

    monkeypatch.setattr("lmi_build.quantizers.calibrated.embed", embed)
    model = make_tiny_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"][0] = 0
    for part in ("gate_proj", "up_proj"):
        tensors[f"model.layers.0.mlp.{part}.weight"][:, 0] = 1e25
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    spec = replace(
        GPTQ,
        ignore=("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"),
        calibration=CalibrationSpec(num_samples=16, max_seq_len=64),
    )

    with pytest.raises(LmiBuildError) as caught:
        quantize(tmp_path, model, spec)

    assert caught.value.code == "quantize.not-finite"
    assert "`model.layers.0.mlp.down_proj`" in caught.value.message
    assert f"sample {spoilt} is the first, inside the block" in caught.value.message


def test_layers_that_see_nothing_are_named(tmp_path: Path) -> None:
    """A layer whose input is always zero cannot be calibrated."""
    model = make_tiny_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"][:] = 0
    save_file(tensors, model / "model.safetensors")

    with pytest.raises(LmiBuildError) as caught:
        quantize(tmp_path, model, GPTQ)

    assert caught.value.code == "quantize.unused"
    assert "model.layers.1.mlp.gate_proj" in caught.value.message


def test_chat_rows_are_rendered_with_the_models_template(
    llama: Path, tmp_path: Path
) -> None:
    """Calibration on messages runs through the model's own chat template."""
    path = tmp_path / "chat.jsonl"
    row = {"messages": [{"role": "user", "content": "What is the capital? " * 20}]}
    path.write_text("\n".join([json.dumps(row)] * 20))
    results = []
    for chat in (False, True):
        calibration = CalibrationSpec(
            dataset=str(path), num_samples=4, max_seq_len=64, chat_template=chat
        )
        spec = replace(GPTQ, calibration=calibration)
        results.append(contents(quantize(tmp_path / str(chat), llama, spec)))

    assert results[0]["model.safetensors"] != results[1]["model.safetensors"]
