"""What benchmarks report is computed right; how fast anything is, is not tested."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
import pytest
import torch

from bench import decode, kl, unpack
from lmi_build.numerics.packing import pack_rows, pack_zeros

if TYPE_CHECKING:
    from pathlib import Path

NUM_INPUTS, NUM_OUTPUTS, GROUP = 64, 32, 16


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unpacking_gives_code_less_zero_times_scale(bits: int) -> None:
    """An AutoGPTQ layer means (code - zero) * scale of its channel's group."""
    generator = torch.Generator().manual_seed(bits)
    top = 1 << bits
    code_io = torch.randint(0, top, (NUM_INPUTS, NUM_OUTPUTS), generator=generator)
    shape = (NUM_INPUTS // GROUP, NUM_OUTPUTS)
    zero_go = torch.randint(1, top, shape, generator=generator)
    scale_go = torch.rand(shape, generator=generator).half()
    group_i = torch.arange(NUM_INPUTS) // GROUP
    expected = torch.empty(NUM_OUTPUTS, NUM_INPUTS)
    for i in range(NUM_INPUTS):
        for o in range(NUM_OUTPUTS):
            at = (i // GROUP, o)
            steps = int(code_io[i, o]) - int(zero_go[at])
            expected[o, i] = steps * float(scale_go[at])

    found = unpack.unpack_gptq(
        {
            "qweight": pack_rows(code_io.to(torch.uint8), bits=bits),
            "qzeros": pack_zeros(zero_go.to(torch.uint8), bits=bits),
            "scales": scale_go,
            "g_idx": group_i.to(torch.int32),
        },
        bits=bits,
        v1=True,
    )

    assert torch.equal(found, expected)


def test_windows_do_not_overlap() -> None:
    """Held-out windows are spread over the text and share no token."""
    windows = kl.held_out_windows(range(1000), count=7, length=100)

    seen = [token for window in windows for token in window]
    assert [len(window) for window in windows] == [100] * 7
    assert len(set(seen)) == len(seen)
    assert windows[-1][0] >= 700


def test_too_little_text_is_said() -> None:
    """More windows than the text holds end the program with both numbers."""
    with pytest.raises(SystemExit, match=r"4 windows of 300 tokens .* has 3"):
        kl.held_out_windows(range(1000), count=4, length=300)


def test_divergence_of_a_coin() -> None:
    """KL, agreement and likelihoods of a two-token vocabulary, worked out by hand."""
    fair = torch.zeros(2, 2)
    biased = torch.tensor([[math.log(3.0), 0.0]] * 2)  # 3/4 against 1/4

    mean_kl, same, nll_reference, nll_candidate = kl.compare([0, 1], fair, biased)

    assert mean_kl == pytest.approx(0.5 * math.log(4 / 3))
    assert same == len(fair)
    assert nll_reference == pytest.approx(math.log(2))
    assert nll_candidate == pytest.approx(math.log(4))


def test_bytes_of_a_token_leave_out_the_embedding(tmp_path: Path) -> None:
    """A table only gathered from is not read whole; one that is multiplied, too, is."""
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

    def table(name: str) -> onnx.TensorProto:
        return onnx.helper.make_tensor(name, float32, [8, 4], [0.0] * 32)

    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Gather", ["embedding", "ids"], ["x"]),
            make("Gather", ["tied", "ids"], ["y"]),
            make("Add", ["x", "y"], ["z"]),
            make("Gemm", ["z", "tied"], ["logits"], transB=1),
        ],
        "tiny",
        [onnx.helper.make_tensor_value_info("ids", int64, [1])],
        [onnx.helper.make_tensor_value_info("logits", float32, [1, 8])],
        initializer=[table("embedding"), table("tied")],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")

    assert decode._engine_bytes(tmp_path) == 8 * 4 * 4
