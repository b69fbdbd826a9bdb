"""
One product in place of several that share an input.

A product of one token is short: a part of its time goes into rounding the activations,
waking the other threads and waiting for them. Gate and up projections of a layer (and
queries, keys and values, where the builder left them apart) need that only once. Rows
of weights only move together, so every value is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lmi_build.backends.onnxruntime_graph import (
    add_initializer,
    constant_of,
    forget,
    nbits_nodes,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

# Of `MatMulNBits`: packed weights, scales, zero points; each by rows of outputs.
_BY_ROWS = slice(1, 4)
# What differs between products that can be one.
_OUTPUTS = "N"


def join_products(model: ir.Model) -> int:
    """
    Replace each set of `MatMulNBits` of one input by one, and a `Split` behind it.

    Only products of the same bits, blocks and activations are joined, and none that has
    a bias or an order of channels.

    Returns:
        How many products went into others.
    """
    sets: dict[Hashable, list[ir.Node]] = {}
    for node in nbits_nodes(model):
        inputs = node.inputs
        if any(value is not None for value in inputs[_BY_ROWS.stop :]):
            continue
        source = inputs[0]
        kind = tuple(
            (name, attribute.value)
            for name, attribute in sorted(node.attributes.items())
            if name != _OUTPUTS
        )
        present = tuple(value is not None for value in inputs[_BY_ROWS])
        key = (None if source is None else source.name, kind, present)
        sets.setdefault(key, []).append(node)
    joined = 0
    for nodes in sets.values():
        if len(nodes) > 1:
            _join(model.graph, nodes)
            joined += len(nodes) - 1
    return joined


def _join(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    first = nodes[0]
    sizes = [int(node.attributes[_OUTPUTS].as_int()) for node in nodes]
    columns = zip(*(node.inputs[_BY_ROWS] for node in nodes), strict=True)
    product = ir.node(
        "MatMulNBits",
        domain="com.microsoft",
        inputs=[first.inputs[0], *(_stack(graph, values) for values in columns)],
        attributes={
            name: sum(sizes) if name == _OUTPUTS else attribute
            for name, attribute in first.attributes.items()
        },
        name=f"{first.name}/Joined",
        outputs=[ir.Value(name=f"{first.name}/Joined/output_0")],
    )
    # Beside the weights, in the external file, these would be out of reach for the
    # check of shapes while the graph is loaded.
    lengths = ir.node(
        "Constant",
        inputs=[],
        attributes={"value_ints": sizes},
        name=f"{first.name}/Split/sizes",
        outputs=[ir.Value(name=f"{first.name}/Split/sizes/output_0")],
    )
    split = ir.node(
        "Split",
        inputs=[product.outputs[0], lengths.outputs[0]],
        attributes={"axis": -1},
        name=f"{first.name}/Split",
        outputs=[ir.Value(name=f"{node.name}/Split/output_0") for node in nodes],
    )
    product.outputs[0].dtype = first.outputs[0].dtype
    weights = [value for node in nodes for value in node.inputs[_BY_ROWS] if value]
    ir.convenience.replace_nodes_and_values(
        graph,
        insertion_point=first,
        old_nodes=nodes,
        new_nodes=[lengths, product, split],
        old_values=[node.outputs[0] for node in nodes],
        new_values=list(split.outputs),
    )
    for value in weights:
        forget(graph, value)


def _stack(graph: ir.Graph, values: Sequence[ir.Value | None]) -> ir.Value | None:
    """The rows of several constants, one after the other."""
    if values[0] is None:
        return None
    arrays: list[np.ndarray[Any, Any]] = [
        constant_of(value).numpy() for value in values if value is not None
    ]
    return add_initializer(graph, f"{values[0].name}.joined", np.concatenate(arrays))
