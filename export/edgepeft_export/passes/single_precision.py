"""Ensures that a graph computes in float32 where it computed in half precision.

Devices have next to no kernels for float16 and none for bfloat16, and gradients are accumulated in float32.

Pattern: values, initializers, constants and ``Cast`` nodes of float16 or bfloat16, in the graph and its subgraphs.
Algebra: each becomes float32, which represents every half number exactly. ``Cast(x) = x`` between the two.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")


def single_precision(model: ir.Model) -> tuple[str, ...]:
    """Convert a graph to float32, in place. Returns the names of the half types that it had."""
    halves: set[ir.DataType] = set()
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.graph.subgraphs(), *model.functions.values()]
    for graph in graphs:
        for value in _values(graph):
            _widen(value, halves)
        for node in graph:
            for attribute in list(node.attributes.values()):
                _widen_attribute(node, attribute, halves)
    if halves:
        _drop_casts(model)
    return tuple(sorted(dtype.name.lower() for dtype in halves))


def _values(graph: ir.Graph | ir.Function) -> list[ir.Value]:
    initializers = [] if isinstance(graph, ir.Function) else list(graph.initializers.values())
    return [*graph.inputs, *initializers, *(value for node in graph for value in node.outputs)]


def _widen(value: ir.Value, halves: set[ir.DataType]) -> None:
    tensor = value.const_value
    if tensor is not None and tensor.dtype in HALF:
        value.dtype, value.const_value = tensor.dtype, _single(tensor)
    if value.dtype in HALF:
        halves.add(value.dtype)
        value.dtype = ir.DataType.FLOAT


def _widen_attribute(node: ir.Node, attribute: ir.Attr, halves: set[ir.DataType]) -> None:
    if attribute.type == ir.AttributeType.INT and attribute.name in _TYPE_ATTRIBUTES:
        dtype = ir.DataType(attribute.as_int())
        if dtype in HALF:
            halves.add(dtype)
            node.attributes[attribute.name] = ir.AttrInt64(attribute.name, ir.DataType.FLOAT.value)
    elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALF:
        halves.add(attribute.as_tensor().dtype)
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _single(attribute.as_tensor()))


def _single(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _drop_casts(model: ir.Model) -> None:
    """Turn casts of float32 to float32 into identities."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type != "Cast" or node.domain or node.inputs[0] is None:
            continue
        single = node.attributes["to"].as_int() == ir.DataType.FLOAT
        if single and node.inputs[0].dtype == ir.DataType.FLOAT:
            node.op_type = "Identity"
            node.attributes.clear()
