"""The models, the reading and the arithmetic of `scripts/bench/quantize.py`."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bench import quantize_models, unpack
from bench.quantize_goals import Goal, at_samples, goals_table, judge
from bench.quantize_results import Cost, Results, scaling_table, table
from bench.usage import CommandFailed, measure
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

BLOCK, LEVELS = quantize_models.Q4_1_BLOCK, quantize_models.Q4_1_LEVELS


def on_grid(num_outputs: int, num_blocks: int, seed: int) -> tuple[Any, Any, Any]:
    """A weight that came out of Q4_1, with its codes and steps."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_outputs, num_blocks, BLOCK)
    code = torch.randint(0, LEVELS, shape, generator=generator)
    code[..., 0], code[..., 1] = 0, LEVELS - 1  # a block uses both ends
    step = (0.005 + 0.01 * torch.rand(*shape[:2], generator=generator)).half().float()
    low = (-step * (LEVELS - 1) * 0.5).half().float()
    weight = (low[..., None] + code * step[..., None]).flatten(1).bfloat16()
    return weight, code.flatten(1), step


@given(seed=st.integers(0, 1000))
def test_dither_stays_within_half_a_step(seed: int) -> None:
    """No weight moves farther than to the border of its own level."""
    weight, _, step = on_grid(6, 3, seed)

    found = quantize_models.dither(weight, torch.Generator().manual_seed(seed))

    moved = (found.float() - weight.float()).abs()
    rounding = weight.float().abs().max() * 2.0**-8
    assert found.dtype == weight.dtype
    assert bool((moved <= step.repeat_interleave(BLOCK, 1) / 2 * 1.02 + rounding).all())


def test_dither_is_uniform_noise() -> None:
    """The noise has the spread of a uniform one of width one step, and no bias."""
    weight, _, step = on_grid(64, 8, 1)

    found = quantize_models.dither(weight, torch.Generator().manual_seed(0))

    noise = (found.float() - weight.float()) / step.repeat_interleave(BLOCK, 1)
    assert float(noise.std()) == pytest.approx(12**-0.5, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)


def test_weights_off_any_grid_are_refused() -> None:
    """Dithering what was never on a grid would be noise for nothing."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()

    with pytest.raises(SystemExit, match="steps beside a Q4_1 grid"):
        quantize_models.grid_step(weight)


def test_outlier_model_is_the_same_function(tmp_path: Path) -> None:
    """Logits are equal bit by bit, while norm outputs have large channels."""
    from transformers import AutoModelForCausalLM

    plain = make_tiny_model(tmp_path / "plain")
    other = quantize_models.derive("outlier", plain, tmp_path / "outlier")
    ids = torch.arange(3, 67)[None]
    logits, peaks = [], []
    for folder in (plain, other):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        seen: list[torch.Tensor] = []
        linear = model.model.layers[1].mlp.gate_proj
        linear.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        with torch.inference_mode():
            logits.append(model(ids).logits)
        size_I = seen[0].abs().amax((0, 1))
        peaks.append(float(size_I.max() / size_I.median()))

    assert torch.equal(*logits)
    assert peaks[1] > 4 * peaks[0]
    before, after = (load_file(x / "model.safetensors") for x in (plain, other))
    assert not torch.equal(
        before["model.layers.0.mlp.up_proj.weight"],
        after["model.layers.0.mlp.up_proj.weight"],
    )


def pack_nibbles(values: Any) -> Any:
    """Eight values of the last axis into one int32, first value lowest."""
    words = np.zeros((*values.shape[:-1], values.shape[-1] // 8), np.uint32)
    for place in range(8):
        words |= values[..., place::8].astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(words.view(np.int32).copy())


def test_compressed_tensors_are_unpacked() -> None:
    """(code - zero) * scale, codes along inputs and zero points along outputs."""
    rng = np.random.default_rng(0)
    num_outputs, num_inputs, group = 16, 32, 8
    code = rng.integers(0, 16, (num_outputs, num_inputs))
    zero = rng.integers(0, 16, (num_outputs, num_inputs // group))
    scale = torch.rand(num_outputs, num_inputs // group).bfloat16()
    expected = torch.empty(num_outputs, num_inputs)
    for o in range(num_outputs):
        for i in range(num_inputs):
            steps = int(code[o, i]) - int(zero[o, i // group])
            expected[o, i] = steps * float(scale[o, i // group])

    found = unpack.unpack_compressed(
        {
            "weight_packed": pack_nibbles(code),
            "weight_zero_point": pack_nibbles(zero.T).T,
            "weight_scale": scale,
            "weight_shape": torch.tensor([num_outputs, num_inputs]),
        },
        bits=4,
    )

    assert torch.equal(found, expected)


def test_autoawq_is_unpacked() -> None:
    """Outputs stand in the order 0 2 4 6 1 3 5 7 within a word."""
    rng = np.random.default_rng(1)
    num_outputs, num_inputs, group = 16, 32, 16
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    columns = [8 * (o // 8) + order[o % 8] for o in range(num_outputs)]
    code = rng.integers(0, 16, (num_inputs, num_outputs))
    zero = rng.integers(0, 16, (num_inputs // group, num_outputs))
    scale = torch.rand(num_inputs // group, num_outputs).half()
    expected = torch.empty(num_outputs, num_inputs)
    for o in range(num_outputs):
        for i in range(num_inputs):
            steps = int(code[i, o]) - int(zero[i // group, o])
            expected[o, i] = steps * float(scale[i // group, o])

    found = unpack.unpack_awq(
        {
            "qweight": pack_nibbles(code[:, columns]),
            "qzeros": pack_nibbles(zero[:, columns]),
            "scales": scale,
        }
    )

    assert torch.equal(found, expected)


@given(seed=st.integers(0, 1000), is_float=st.booleans())
def test_rounded_activations_are_near(seed: int, *, is_float: bool) -> None:
    """Each token's error is at most half a step of its own grid."""
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    how = unpack.Activations(bits=8, is_float=is_float, dynamic=True, per_token=True)

    miss = (unpack.round_activations(x, how) - x).abs()

    largest = x.abs().amax(-1, keepdim=True)
    # int8: half of 1/127; float8 has 3 bits of mantissa: half of 2^-3 of the number.
    bound = x.abs() * 2.0**-4 + largest * 2.0**-10 / 448 if is_float else largest / 254
    assert bool((miss <= bound * 1.001).all())


def row(name: str, **measures: Any) -> dict[str, Any]:
    """A finished row."""
    tool, method = name.split(":")
    samples = measures.pop("samples", 64)
    found = {"tool": tool, "method": method, "reference": "plain", "samples": samples}
    found |= {"length": 512, "seed": 0, "weight_bytes": 1, "cores_used_by_others": 0.0}
    found["call"] = {"cpu": measures.get("cpu", 1.0), "wall": 1.0, "resident_before": 1}
    found["whole"] = {"cpu": 1.0, "wall": 1.0, "peak": 1}
    if "kl" in measures:
        found["score"] = {"kl": measures["kl"], "kl_stderr": 0.0, "top1": 1.0}
        found["score"] |= {"perplexity": 1.0, "reference_perplexity": 1.0}
        found["score"]["window_kl"] = measures.get("window_kl", [])
    return found


def test_goals_divide_by_the_best_library() -> None:
    """The least of the peers counts; a missing row leaves its goal open."""
    rows = {
        "a": row("ours:gptq-sym", kl=0.1),
        "b": row("x:gptq-sym", kl=0.2),
        "c": row("y:gptq-sym", kl=0.08),
    }
    both = ("x:gptq-sym", "y:gptq-sym", "absent:gptq-sym")
    told: dict[str, Any] = {"measure": "kl", "limit": 1.0}

    verdicts = judge(
        rows,
        [
            Goal(text="one", ours="ours:gptq-sym", against=both[:1], **told),
            Goal(text="all", ours="ours:gptq-sym", against=both, **told),
            Goal(text="alone", ours="ours:gptq-sym", measure="kl", limit=0.1),
            Goal(text="gone", ours="ours:gptq-sym", against=both[2:], **told),
            Goal(text="not run", ours="ours:awq-asym", against=both, **told),
        ],
    )

    assert [x.word for x in verdicts] == ["met", "missed", "met", "open", "open"]
    assert [x.value for x in verdicts[:3]] == pytest.approx([0.5, 1.25, 0.1])
    assert "Goals: 2 met, 0 level, 1 missed, 2 open." in goals_table(verdicts)


def test_tools_are_compared_on_equal_samples() -> None:
    """A library too slow for 64 samples stands beside ours with as few as it had."""
    rows = {
        "a": row("ours:awq-asym", cpu=100.0),
        "b": row("ours:awq-asym", cpu=20.0, samples=4),
        "c": row("x:awq-asym", cpu=80.0, samples=4),
    }
    goal = Goal(
        text="", measure="cpu", ours="ours:awq-asym", limit=1, against=("x:awq-asym",)
    )

    (verdict,) = judge(rows, [goal])

    assert verdict.value == pytest.approx(0.25)
    assert verdict.note == "x:awq-asym both with 4 samples"


@pytest.mark.parametrize(("shift", "word"), [(0.001, "level"), (0.1, "missed")])
def test_a_difference_within_noise_is_none(shift: float, word: str) -> None:
    """Windows differ by more than the tools do, or the tools differ in every window."""
    theirs = [0.1 + 0.01 * window for window in range(20)]
    ours = [x + shift + 0.004 * (-1) ** at for at, x in enumerate(theirs)]
    rows = {
        "a": row("ours:gptq-sym", kl=sum(ours) / 20, window_kl=ours),
        "b": row("x:gptq-sym", kl=sum(theirs) / 20, window_kl=theirs),
    }
    goal = Goal(
        text="", measure="kl", ours="ours:gptq-sym", limit=1, against=("x:gptq-sym",)
    )

    assert [x.word for x in judge(rows, [goal])] == [word]


def test_cost_grows_along_a_line() -> None:
    """Fewer samples in two rows give the cost of many, and it is said."""
    assert at_samples({4: [30.0], 16: [90.0]}, 64, grows=True) == (
        330.0,
        "extrapolated from 4 and 16 samples",
    )
    assert at_samples({64: [1.0, 3.0]}, 64, grows=True) == (2.0, "")
    assert at_samples({4: [0.1], 16: [0.2]}, 64, grows=False) == (
        0.2,
        "with 16 samples only",
    )
    assert at_samples({}, 64, grows=True) == (None, "")


def test_finished_rows_survive(tmp_path: Path) -> None:
    """A second run goes on where the first stopped, and never overwrites unasked."""
    path = tmp_path / "results.json"
    Results.open(path, resume=False).put("a", row("ours:int8", kl=0.003))

    again = Results.open(path, resume=True)
    again.put("b", {**row("x:int8"), "error": "Traceback\nRuntimeError: no"})

    assert list(json.loads(path.read_text())["rows"]) == ["a", "b"]
    assert "failed: RuntimeError: no" in table(again.rows)
    with pytest.raises(SystemExit, match="--resume"):
        Results.open(path, resume=False)


def test_scaling_says_how_far_from_a_line() -> None:
    """Cost that is linear in layers and tokens deviates by nothing."""
    costs = [
        Cost(layers=n, tokens=t, cpu=5 + n * t / 1000, wall=1, peak=500 + n / 2)
        for n, t in ((8, 4096), (16, 4096), (32, 4096), (8, 8192), (8, 16384))
    ]

    text = scaling_table(costs)

    assert text.count("largest deviation 0.0%") == 2
    assert "Peak of 32 layers / of 8: 1.024" in text


def test_a_command_that_fails_or_hangs_is_an_error(tmp_path: Path) -> None:
    """Its last words are kept; one that hangs is killed with what it started."""
    log, code = tmp_path / "log.txt", "import sys; sys.exit('not today')"
    with pytest.raises(CommandFailed, match="not today"):
        measure([sys.executable, "-c", code], environment={}, log=log)

    began = time.monotonic()
    child = "import subprocess; subprocess.run(['sleep', '60'])"
    with pytest.raises(CommandFailed, match=r"killed after 0\.2 s"):
        measure(
            [sys.executable, "-c", child],
            environment={"PATH": "/usr/bin:/bin"},
            log=log,
            timeout=0.2,
        )
    assert time.monotonic() - began < 30
