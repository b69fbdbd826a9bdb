"""Products of packed weights: joined ones keep every bit; inputs are all they round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnxruntime_genai")

import onnx_ir as ir
import onnxruntime

from lmi_build.backends.onnxruntime_graph import constant_of
from lmi_build.backends.onnxruntime_joined import join_products

if TYPE_CHECKING:
    from collections.abc import Sequence

INPUTS, BLOCK = 64, 32


def graph(
    outputs: Sequence[int],
    *,
    bits: int,
    zeros: Sequence[bool],
    levels: Sequence[int],
    seed: int,
) -> ir.Model:
    """Products of the input `x`, named y0, y1 and so on."""
    random = np.random.default_rng(seed)
    x = ir.Value(
        name="x", shape=ir.Shape(["T", INPUTS]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    nodes, constants = [], []

    def constant(name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        constants.append(value)
        return value

    blocks = INPUTS // BLOCK
    for place, (size, zero, level) in enumerate(
        zip(outputs, zeros, levels, strict=True)
    ):
        codes = random.integers(0, 256, (size, blocks, BLOCK * bits // 8), np.uint8)
        scales = random.uniform(0.01, 0.1, size * blocks).astype(np.float32)
        inputs = [x, constant(f"w{place}", codes), constant(f"s{place}", scales)]
        if zero:
            rows = random.integers(0, 256, (size, blocks * bits // 8), np.uint8)
            inputs.append(constant(f"z{place}", rows))
        sizes = {"K": INPUTS, "N": size, "bits": bits, "block_size": BLOCK}
        nodes.append(
            ir.node(
                "MatMulNBits",
                domain="com.microsoft",
                inputs=inputs,
                attributes={**sizes, "accuracy_level": level},
                name=f"/p{place}",
                outputs=[
                    ir.Value(name=f"y{place}", type=ir.TensorType(ir.DataType.FLOAT))
                ],
            )
        )
        nodes.append(
            ir.node(
                "Neg",
                inputs=[nodes[-1].outputs[0]],
                outputs=[
                    ir.Value(
                        name=f"n{place}",
                        shape=ir.Shape(["T", size]),
                        type=ir.TensorType(ir.DataType.FLOAT),
                    )
                ],
            )
        )
    built = ir.Graph(
        [x],
        [node.outputs[0] for node in nodes[1::2]],
        nodes=nodes,
        initializers=constants,
        opset_imports={"": 21, "com.microsoft": 1},
        name="graph",
    )
    return ir.Model(built, ir_version=10)


def run(model: ir.Model, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """All outputs."""
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: list[np.ndarray[Any, Any]] = session.run(None, {"x": x})
    return found


def products(model: ir.Model) -> int:
    """How many are left."""
    return sum(node.op_type == "MatMulNBits" for node in model.graph)


@given(
    outputs=st.lists(st.integers(1, 5).map(lambda n: 8 * n), min_size=2, max_size=3),
    bits=st.sampled_from((4, 8)),
    zero=st.booleans(),
    level=st.sampled_from((1, 4)),
    tokens=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_outputs_keep_every_bit(
    outputs: list[int], *, bits: int, zero: bool, level: int, tokens: int, seed: int
) -> None:
    """One product and a split give what several gave."""
    count = len(outputs)

    def made() -> ir.Model:
        return graph(
            outputs,
            bits=bits,
            zeros=[zero] * count,
            levels=[level] * count,
            seed=seed,
        )

    x = np.random.default_rng(seed).standard_normal((tokens, INPUTS), np.float32)
    before = run(made(), x)
    model = made()

    assert join_products(model) == count - 1
    assert products(model) == 1
    assert len(model.graph.initializers) == 2 + zero
    for old, new in zip(before, run(model, x), strict=True):
        assert np.array_equal(old, new)


@pytest.mark.parametrize(
    ("zeros", "levels"),
    [((True, False), (4, 4)), ((False, False), (1, 4))],
    ids=["zero points", "activations"],
)
def test_others_stay_apart(zeros: tuple[bool, ...], levels: tuple[int, ...]) -> None:
    """Zero points of one, or other activations, leave both as they were."""
    model = graph((8, 16), bits=4, zeros=zeros, levels=levels, seed=0)

    assert join_products(model) == 0
    assert products(model) == 2


@given(
    bits=st.sampled_from((4, 8)),
    tokens=st.integers(1, 40),
    size=st.floats(-6, 6).map(lambda n: 10.0**n),
    seed=st.integers(0, 99),
)
def test_a_product_adds_the_rounding_of_its_inputs_and_no_more(
    bits: int, tokens: int, size: float, seed: int
) -> None:
    """Level 4 rounds each block to 255 even steps; the rest is exact to 1e-6."""
    model = graph((16,), bits=bits, zeros=[False], levels=[4], seed=seed)
    held = {
        name: constant_of(v).numpy() for name, v in model.graph.initializers.items()
    }
    codes = held["w0"]
    if bits == 4:
        codes = np.stack((codes & 0xF, codes >> 4), -1).reshape(16, -1, BLOCK)
    weight = (codes.astype(np.float64) - 2 ** (bits - 1)) * held["s0"].reshape(
        16, -1, 1
    )
    random = np.random.default_rng(seed)
    x = (random.standard_normal((tokens, INPUTS)) * size).astype(np.float32)
    blocks = x.reshape(tokens, -1, BLOCK)
    step = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    rounded = np.rint(blocks * (np.float32(1) / step)) * step.astype(np.float64)
    wanted = -(rounded.reshape(tokens, INPUTS) @ weight.reshape(16, INPUTS).T)

    (found,) = run(model, x)

    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()
