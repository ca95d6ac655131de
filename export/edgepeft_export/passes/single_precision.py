"""Ensures that a graph computes in float32 what it computed in half precision.

Devices have next to no kernels for float16 and none for bfloat16, and gradients are accumulated in float32. Every value
of half precision becomes float32: inputs, initializers, constants, what is cast; ``Cast`` between the two falls away.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")


def single_precision(model: ir.Model) -> tuple[str, ...]:
    """Bring a graph to float32, in place; returns the names of the half types that it had."""
    found: set[ir.DataType] = set()
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.graph.subgraphs(), *model.functions.values()]
    for graph in graphs:
        for value in _values(graph):
            _widen(value, found)
        for node in graph:
            for attribute in list(node.attributes.values()):
                _widen_attribute(node, attribute, found)
    if found:
        _drop_casts(model)
    return tuple(sorted(dtype.name.lower() for dtype in found))


def _values(graph: ir.Graph | ir.Function) -> list[ir.Value]:
    initializers = [] if isinstance(graph, ir.Function) else list(graph.initializers.values())
    return [*graph.inputs, *initializers, *(value for node in graph for value in node.outputs)]


def _widen(value: ir.Value, found: set[ir.DataType]) -> None:
    tensor = value.const_value
    if tensor is not None and tensor.dtype in HALF:
        found.add(tensor.dtype)
        value.const_value = _single(tensor)
        value.dtype = ir.DataType.FLOAT
    if value.dtype in HALF:
        found.add(value.dtype)
        value.dtype = ir.DataType.FLOAT


def _widen_attribute(node: ir.Node, attribute: ir.Attr, found: set[ir.DataType]) -> None:
    if attribute.type == ir.AttributeType.INT and attribute.name in _TYPE_ATTRIBUTES:
        dtype = ir.DataType(attribute.as_int())
        if dtype in HALF:
            found.add(dtype)
            node.attributes[attribute.name] = ir.AttrInt64(attribute.name, ir.DataType.FLOAT.value)
    elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALF:
        found.add(attribute.as_tensor().dtype)
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
