"""
Changes to the builder's graph that keep every value, but for an int8 head on request.

All of them work on `onnx_ir` values in memory, before the engine is written.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lmi_build.errors import StageFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

EMBEDDING_WEIGHT = "model.embed_tokens.weight"
EMBEDDING_NODE = "/model/embed_tokens/Gather"
HEAD_NODE = "/lm_head/MatMul"
HEAD_WEIGHT = "lm_head.MatMul.weight"
# Rows converted at a time, so that no second copy of a large matrix is held.
_CHUNK_ROWS = 4096
_QKV = re.compile(r"/attn/(qkv|q|k|v)_proj/")
_INT8_LEVELS = 127
_INT8_MIDDLE = 128


def nodes_named(graph: ir.Graph, name: str) -> list[ir.Node]:
    """Nodes of that name; a built graph has one or none."""
    return [node for node in graph if node.name == name]


def drop_plain_zeros(model: ir.Model) -> int:
    """
    Remove zero points that only say what `MatMulNBits` assumes without them.

    Returns:
        How many were removed.
    """
    dropped = 0
    for node in nbits_nodes(model):
        if len(node.inputs) <= _ZEROS or node.inputs[_ZEROS] is None:
            continue
        value = node.inputs[_ZEROS]
        middle = 0x88 if _attribute(node, "bits") == 4 else 0x80  # noqa: PLR2004
        if bool((constant_of(value).numpy() == middle).all()):
            node.replace_input_with(_ZEROS, None)
            forget(model.graph, value)
            _trim_inputs(node)
            dropped += 1
    return dropped


def reorder_inputs(model: ir.Model) -> int:
    """
    Turn each channel order into a `Gather` on the activations.

    The builder passes GPTQ's activation order as the fifth input of `MatMulNBits`,
    which ONNX Runtime serves slowly or not at all; our blocks are already sorted, so
    only the activations remain to be put in the same order.

    Returns:
        How many layers were changed.
    """
    changed = 0
    gathers: dict[tuple[str, bytes], ir.Value] = {}
    for node in nbits_nodes(model):
        if len(node.inputs) <= _ORDER or node.inputs[_ORDER] is None:
            continue
        order, source = node.inputs[_ORDER], node.inputs[0]
        key = (source.name, constant_of(order).numpy().tobytes())
        if key not in gathers:
            gather = ir.node(
                "Gather",
                inputs=[source, order],
                attributes={"axis": -1},
                name=f"{node.name}/Reorder",
                outputs=[ir.Value(name=f"{node.name}/Reorder/output_0")],
            )
            gather.outputs[0].dtype = source.dtype
            gather.outputs[0].shape = source.shape
            model.graph.insert_before(node, gather)
            gathers[key] = gather.outputs[0]
        node.replace_input_with(0, gathers[key])
        node.replace_input_with(_ORDER, None)
        forget(model.graph, order)
        _trim_inputs(node)
        changed += 1
    return changed


def set_qkv_accuracy(model: ir.Model, level: int) -> None:
    """
    Give the 4-bit projections to queries, keys and values their own activation type.

    Rounding of activations hurts most there. 8-bit weights have a fast kernel with
    int8 activations only and are left alone.
    """
    for node in nbits_nodes(model):
        if _QKV.search(node.name or "") and _attribute(node, "bits") == 4:  # noqa: PLR2004
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)


def narrow_embedding(model: ir.Model) -> str:
    """
    Store the embedding in 16 bits when that loses nothing.

    Returns:
        The dtype it is stored in: `bfloat16`, `float16` or `float32`.
    """
    value = model.graph.initializers.get(EMBEDDING_WEIGHT)
    nodes = nodes_named(model.graph, EMBEDDING_NODE)
    if value is None or len(nodes) != 1 or value.dtype != ir.DataType.FLOAT:
        return "float32"
    table = constant_of(value).numpy()
    for dtype in (ml_dtypes.bfloat16, np.float16):
        narrow = _narrow(table, np.dtype(dtype))
        if narrow is not None:
            _widen_after(model.graph, nodes[0], value, narrow)
            return np.dtype(dtype).name
    return "float32"


def quantize_head(model: ir.Model, *, block_size: int, accuracy_level: int) -> None:
    """
    Replace the float head by 8-bit blocks, rounded to nearest, symmetric.

    Args:
        model: A graph whose head is one float `MatMul`.
        block_size: Input channels that share a scale.
        accuracy_level: Of the new `MatMulNBits`.

    Raises:
        StageFailed: `compile.head-not-found` when the graph has no such node.
    """
    nodes = nodes_named(model.graph, HEAD_NODE)
    if len(nodes) != 1 or nodes[0].op_type != "MatMul":
        raise StageFailed(
            f"the graph has no float head `{HEAD_NODE}` to quantize",
            code="compile.head-not-found",
            hints=("set `lm_head_dtype: float32`",),
        )
    node = nodes[0]
    weight = node.inputs[1]
    blocks, scales = quantize_int8_blocks(constant_of(weight).numpy().T, block_size)
    num_outputs, num_inputs = weight.shape[1], weight.shape[0]
    new = ir.node(
        "MatMulNBits",
        domain="com.microsoft",
        inputs=[
            node.inputs[0],
            add_initializer(model.graph, f"{HEAD_WEIGHT}.blocks", blocks),
            add_initializer(model.graph, f"{HEAD_WEIGHT}.scales", scales),
        ],
        attributes={
            "K": num_inputs,
            "N": num_outputs,
            "bits": 8,
            "block_size": block_size,
            "accuracy_level": accuracy_level,
        },
        name=f"{HEAD_NODE}NBits",
        outputs=[ir.Value(name=f"{HEAD_NODE}NBits/output_0")],
    )
    replace_node(model.graph, node, new)
    forget(model.graph, weight)


def quantize_int8_blocks(
    weight: np.ndarray[Any, Any], block_size: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """
    Round a matrix to 8 bits with one scale per block of input channels.

    Args:
        weight: float32 [O, I].
        block_size: Input channels per block.

    Returns:
        uint8 [O, B, block_size] around 128, and float32 scales [O * B].
    """
    num_rows, num_inputs = weight.shape
    num_blocks = -(-num_inputs // block_size)
    blocks = np.empty((num_rows, num_blocks, block_size), np.uint8)
    scales = np.empty((num_rows, num_blocks), np.float32)
    for start in range(0, num_rows, _CHUNK_ROWS):
        rows = np.asarray(weight[start : start + _CHUNK_ROWS], np.float32)
        rows = np.pad(rows, ((0, 0), (0, num_blocks * block_size - num_inputs)))
        rows = rows.reshape(-1, num_blocks, block_size)
        scale = np.abs(rows).max(axis=2) / np.float32(_INT8_LEVELS)
        safe = np.where(scale > 0, scale, np.float32(1))
        levels = np.rint(rows / safe[:, :, None]) + _INT8_MIDDLE
        blocks[start : start + _CHUNK_ROWS] = levels.astype(np.uint8)
        scales[start : start + _CHUNK_ROWS] = scale
    return blocks, scales.reshape(-1)


# Positions of MatMulNBits' optional inputs.
_ZEROS = 3
_ORDER = 4


def nbits_nodes(model: ir.Model) -> list[ir.Node]:
    """Every `MatMulNBits`, in order."""
    return [node for node in model.graph if node.op_type == "MatMulNBits"]


def _attribute(node: ir.Node, name: str) -> int:
    return int(node.attributes[name].as_int())


def constant_of(value: ir.Value) -> ir.TensorProtocol:
    """
    What an initializer holds.

    Raises:
        ValueError: The value is computed.
    """
    if value.const_value is None:
        raise ValueError(f"`{value.name}` is not a constant")
    return value.const_value


def forget(graph: ir.Graph, value: ir.Value) -> None:
    """Drop an initializer that nobody reads any more."""
    if not value.uses():
        graph.initializers.pop(value.name, None)


def _trim_inputs(node: ir.Node) -> None:
    """Cut trailing absent inputs, which older runtimes do not take."""
    length = len(node.inputs)
    while length and node.inputs[length - 1] is None:
        length -= 1
    node.resize_inputs(length)


def add_initializer(
    graph: ir.Graph, name: str, array: np.ndarray[Any, Any]
) -> ir.Value:
    """Register a constant."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _narrow(
    table: np.ndarray[Any, Any], dtype: np.dtype[Any]
) -> np.ndarray[Any, Any] | None:
    """The same numbers in another dtype, or None when one of them changes."""
    narrow = np.empty(table.shape, dtype)
    for start in range(0, table.shape[0], _CHUNK_ROWS):
        rows = table[start : start + _CHUNK_ROWS]
        with np.errstate(over="ignore"):
            part = rows.astype(dtype)
        if not np.array_equal(part.astype(np.float32), rows):
            return None
        narrow[start : start + _CHUNK_ROWS] = part
    return narrow


def _widen_after(
    graph: ir.Graph, node: ir.Node, value: ir.Value, table: np.ndarray[Any, Any]
) -> None:
    """Feed a `Gather` from a narrow table, with a `Cast` behind it."""
    output = node.outputs[0]
    name = f"{EMBEDDING_WEIGHT}.{table.dtype.name}"
    narrow = add_initializer(graph, name, table)
    gathered = ir.node(
        "Gather",
        inputs=[narrow, node.inputs[1]],
        name=node.name,
        outputs=[ir.Value(name=f"{node.name}/narrow")],
    )
    cast = ir.node(
        "Cast",
        inputs=[gathered.outputs[0]],
        attributes={"to": int(ir.DataType.FLOAT)},
        name=f"{node.name}/Cast",
        outputs=[ir.Value(name=f"{node.name}/Cast/output_0")],
    )
    gathered.outputs[0].dtype = narrow.dtype
    gathered.outputs[0].shape = output.shape
    graph.insert_before(node, gathered)
    replace_node(graph, node, cast)
    forget(graph, value)


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put a node in another's place, its output under the old name."""
    ir.convenience.replace_nodes_and_values(
        graph,
        insertion_point=old,
        old_nodes=[old],
        new_nodes=[new],
        old_values=list(old.outputs),
        new_values=list(new.outputs),
    )


def scrub(model: ir.Model, *, producer: str, version: str) -> None:
    """Leave nothing in the graph that depends on where or by whom it was made."""
    model.producer_name = producer
    model.producer_version = version
    model.doc_string = None
    model.metadata_props.clear()
    nodes: Sequence[ir.Node] = tuple(model.graph)
    for node in nodes:
        node.doc_string = None
        node.metadata_props.clear()
