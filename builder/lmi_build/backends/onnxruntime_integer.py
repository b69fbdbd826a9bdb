"""
8-bit linears whose activations are 8-bit too, as ONNX Runtime's integer products.

A checkpoint of this kind means `y = (sum_i x_ti w_io) * step_t * scale_o` with integers
x and w and an exact sum. `MatMulNBits` cannot say that: it rounds activations in blocks
of channels. `DynamicQuantizeMatMul` cannot either: one step for all tokens, and not
around zero. `MatMulIntegerToFloat` can, with the activations' step multiplied in
afterwards, because it is constant along a row:

    step_T1 = max |x_TI| / 127
    code_TI = QuantizeLinear(x_TI / step_T1, scale 1, zero point 128)   to nearest even
    y_TO    = MatMulIntegerToFloat(code_TI, w_IO, 1, scale_O, 128, zero_O) * step_T1

A row of zeros has step 0; its quotients are not numbers, its codes whatever the cast
makes of them, and its results 0.

Codes are unsigned although the numbers are not: signed ones have no kernel on x86 (25
times slower on one with VNNI). Unsigned times signed saturates in 16 bits on CPUs
without VNNI; `SESSION_OPTIONS` has ONNX Runtime turn weights into unsigned ones there.

Shapes: T tokens, I input channels, O output channels, B blocks of I.

Sources: ONNX Runtime 1.31 `docs/ContribOperators.md`, `MatMulIntegerToFloat`;
`core/optimizer/qdq_transformer/avx2_weight_s8_to_u8.cc`; vLLM's `scaled_int8_quant`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lmi_build.backends.onnxruntime_graph import (
    add_initializer,
    constant_of,
    forget,
    nbits_nodes,
    replace_node,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    Array = np.ndarray[Any, Any]

# Read by ONNX Runtime where it loads the engine.
SESSION_OPTIONS = {"session.x64quantprecision": "1"}
INT8_MAX = 127.0
_MIDDLE = 128
_ZEROS = 3
_PREFIX = "/model/integer"
_NODE = re.compile(
    r"/model/layers\.(?P<layer>\d+)/(?P<part>attn|mlp)/(?P<name>\w+)_proj/MatMulNBits"
)


def module_of(node_name: str) -> str:
    """
    The checkpoint's module that a node stands for; of a fused product the first one.

    Args:
        node_name: As the builder names `MatMulNBits`.
    """
    match = _NODE.fullmatch(node_name)
    if match is None:
        return node_name.strip("/").split("/")[0]
    part = "self_attn" if match["part"] == "attn" else "mlp"
    name = {"qkv": "q"}.get(match["name"], match["name"])
    return f"model.layers.{match['layer']}.{part}.{name}_proj"


def use_integer_products(model: ir.Model, input_scales: Mapping[str, float]) -> int:
    """
    Replace every 8-bit `MatMulNBits` of one scale per row by an integer product.

    Args:
        model: The builder's graph, its weights in blocks.
        input_scales: Stored step of the inputs of each module, by its name; a module
            without one finds a step per token while serving.

    Returns:
        How many were replaced.

    Raises:
        ValueError: A layer has other than 8 bits, or several scales in a row.
    """
    codes: dict[tuple[str, float | None], tuple[ir.Value, ir.Value]] = {}
    nodes = nbits_nodes(model)
    for node in nodes:
        step = input_scales.get(module_of(str(node.name)))
        source = node.inputs[0]
        if source is None:
            raise ValueError(f"`{node.name}` has no input")
        key = (str(source.name), step)
        if key not in codes:
            codes[key] = _quantize(model.graph, node, source, step)
        _multiply(model.graph, node, *codes[key], stored=step is not None)
    return len(nodes)


def _quantize(
    graph: ir.Graph, before: ir.Node, source: ir.Value, step: float | None
) -> tuple[ir.Value, ir.Value]:
    """Codes of an activation, uint8 around 128, and their step."""
    name = f"{str(source.name).removesuffix('/output_0')}/Int8"
    middle = _shared(graph, f"{_PREFIX}/middle", np.array(_MIDDLE, np.uint8))
    if step is not None:
        scale = add_initializer(graph, f"{name}/scale", np.array(step, np.float32))
        quotient = source
        divisor = scale
    else:
        axes = _last_axis(graph, before)
        most = _shared(graph, f"{_PREFIX}/most", np.array(INT8_MAX, np.float32))
        divisor = _shared(graph, f"{_PREFIX}/one", np.array(1.0, np.float32))
        largest = _insert(graph, before, "Abs", [source], f"{name}/Abs", like=source)
        largest = _insert(
            graph, before, "ReduceMax", [largest, axes], f"{name}/ReduceMax", keepdims=1
        )
        scale = _insert(graph, before, "Div", [largest, most], f"{name}/Step")
        quotient = _insert(
            graph, before, "Div", [source, scale], f"{name}/Div", like=source
        )
    code = _insert(
        graph,
        before,
        "QuantizeLinear",
        [quotient, divisor, middle],
        f"{name}/QuantizeLinear",
        like=source,
    )
    code.dtype = ir.DataType.UINT8
    return code, scale


def _multiply(
    graph: ir.Graph, node: ir.Node, code: ir.Value, step: ir.Value, *, stored: bool
) -> None:
    """Put the product of codes in the place of a `MatMulNBits`."""
    blocks, scales = node.inputs[1], node.inputs[2]
    zeros = node.inputs[_ZEROS] if len(node.inputs) > _ZEROS else None
    weight_IO, scale_O, zero_O = _rows_of(node, blocks, scales, zeros)
    name = str(node.name).removesuffix("NBits") + "Integer"
    stem = name[1:].replace("/", ".")
    middle = graph.initializers[f"{_PREFIX}/middle"]
    one = _shared(graph, f"{_PREFIX}/one", np.array(1.0, np.float32))
    inputs: list[ir.Value] = [
        code,
        add_initializer(graph, f"{stem}.weight", weight_IO),
        step if stored else one,
        add_initializer(graph, f"{stem}.scale", scale_O),
        middle,
    ]
    if zero_O is not None:
        inputs.append(add_initializer(graph, f"{stem}.zero_point", zero_O))
    product = ir.node(
        "MatMulIntegerToFloat",
        domain="com.microsoft",
        inputs=inputs,
        name=name,
        outputs=[ir.Value(name=f"{name}/output_0")],
    )
    if stored:
        replace_node(graph, node, product)
    else:
        output = node.outputs[0]
        product.outputs[0].dtype = output.dtype
        product.outputs[0].shape = output.shape
        graph.insert_before(node, product)
        scaled = ir.node(
            "Mul",
            inputs=[product.outputs[0], step],
            name=f"{name}/Scale",
            outputs=[ir.Value(name=f"{name}/Scale/output_0")],
        )
        replace_node(graph, node, scaled)
    for value in (blocks, scales, zeros):
        if value is not None:
            forget(graph, value)


def _rows_of(
    node: ir.Node,
    blocks: ir.Value | None,
    scales: ir.Value | None,
    zeros: ir.Value | None,
) -> tuple[Array, Array, Array | None]:
    """Weights int8 [I, O], scales float32 [O], zero points int8 [O] or None."""
    bits = int(node.attributes["bits"].as_int())
    if bits != 8 or blocks is None or scales is None:  # noqa: PLR2004 - bits of int8
        raise ValueError(f"`{node.name}` has {bits}-bit weights, not 8-bit ones")
    num_inputs = int(node.attributes["K"].as_int())
    num_outputs = int(node.attributes["N"].as_int())
    code_OI = constant_of(blocks).numpy().reshape(num_outputs, -1)[:, :num_inputs]
    scale_O = _one_of_row(node, constant_of(scales).numpy().reshape(num_outputs, -1))
    zero_O = None
    if zeros is not None:
        rows = constant_of(zeros).numpy().reshape(num_outputs, -1)
        zero_O = _signed(_one_of_row(node, rows))
    return _signed(code_OI.T), scale_O, zero_O


def _one_of_row(node: ir.Node, rows_OB: Array) -> Array:
    if not bool((rows_OB == rows_OB[:, :1]).all()):
        raise ValueError(f"`{node.name}` has several scales in a row")
    return np.ascontiguousarray(rows_OB[:, 0])


def _signed(code: Array) -> Array:
    flipped: Array = np.ascontiguousarray(code) ^ np.uint8(_MIDDLE)
    return flipped.view(np.int8)


def _shared(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    if name not in graph.initializers:
        add_initializer(graph, name, array)
    return graph.initializers[name]


def _last_axis(graph: ir.Graph, before: ir.Node) -> ir.Value:
    """A node, because shapes are inferred before the engine's data are read."""
    name = f"{_PREFIX}/last_axis"
    for node in graph:
        if node.name == name:
            return node.outputs[0]
    node = ir.node(
        "Constant",
        inputs=[],
        attributes={"value": ir.tensor(np.array([-1], np.int64))},
        name=name,
        outputs=[ir.Value(name=f"{name}/output_0")],
    )
    graph.insert_before(before, node)
    return node.outputs[0]


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    name: str,
    *,
    like: ir.Value | None = None,
    **attributes: int,
) -> ir.Value:
    output = ir.Value(name=f"{name}/output_0")
    node = ir.node(
        op_type, inputs=inputs, attributes=attributes, name=name, outputs=[output]
    )
    output.dtype = inputs[0].dtype
    if like is not None:
        output.shape = like.shape
    graph.insert_before(before, node)
    return output
