"""Computes integers and booleans that follow from constants and known sizes: shapes, axes, conditions.

Ranks and sizes are then known which ONNX's shape inference leaves open, and branches whose condition is constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.graph.constants import known, new_initializer
from edgepeft_export.graph.shapes import dims_of, infer_shapes
from edgepeft_export.opset import IR_VERSION

_SMALL = 1024
"""Elements. What is computed from larger tensors is no shape."""

_COUNTED = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def fold_shapes(model: ir.Model) -> None:
    """Replace computed shapes and conditions by constants, in place, and infer shapes, as long as there are more."""
    infer_shapes(model)
    _scalar_ranges(model.graph)
    while _fold_sizes(model.graph) | _fold_constants(model.graph):
        infer_shapes(model)


def _scalar_ranges(graph: ir.Graph) -> None:
    """Let each ``Range`` read scalars: bodies of ONNX have vectors there, which ONNX Runtime refuses as constants."""
    for node in [node for node in graph if node.op_type == "Range" and not node.domain]:
        for index, value in enumerate(node.inputs):
            if value is not None and value.shape is not None and len(value.shape) == 1:
                squeezed = ir.node("Squeeze", [value], name=f"{node.name or 'Range'}/Squeeze")
                node.prepend(squeezed)
                squeezed.outputs[0].shape, squeezed.outputs[0].type = ir.Shape([]), value.type
                node.replace_input_with(index, squeezed.outputs[0])


def _fold_sizes(graph: ir.Graph) -> bool:
    found = [(node, array) for node in graph if (array := _size(node)) is not None]
    for node, array in found:
        _replace(node.outputs[0], array)
    return bool(found)


def _size(node: ir.Node) -> NDArray[np.int64] | None:
    """The sizes that a node reads from a shape, where they are known."""
    if node.domain or node.outputs[0].is_graph_output() or not node.outputs[0].uses():
        return None
    if node.op_type == "Gather":
        shape, indices = node.inputs[0], known(node.inputs[1])
        reader = None if shape is None else shape.producer()
        if reader is None or reader.op_type != "Shape" or indices is None or indices.size > _SMALL:
            return None
        dims = _dims(reader)
        picked = [] if dims is None else [dims[int(index)] for index in indices.reshape(-1)]
        return _integers(picked, indices.shape) if picked else None
    dims = _dims(node) if node.op_type in ("Shape", "Size") else None
    if dims is None:
        return None
    array = _integers(dims, (len(dims),))
    return array.prod(dtype=np.int64) if array is not None and node.op_type == "Size" else array


def _dims(node: ir.Node) -> list[int | str | None] | None:
    """The dimensions that a ``Shape`` or ``Size`` reads."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    return dims_of(value)[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]


def _integers(dims: Sequence[int | str | None], shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return np.array(numbers, np.int64).reshape(shape) if len(numbers) == len(dims) else None


def _fold_constants(graph: ir.Graph) -> bool:
    """Replace the last values of each chain of nodes that reads small constants alone."""
    computed: set[ir.Value] = set()
    nodes = [node for node in graph if _computes(node, computed)]
    wanted = [value for node in nodes for value in node.outputs if _is_wanted(value, computed)]
    wanted = [value for value in wanted if not value.is_graph_output()]
    replaced = False
    for value, array in zip(wanted, _results(graph, nodes, wanted), strict=False):
        if array.size <= _SMALL:
            _replace(value, array)
            replaced = True
    return replaced


def _computes(node: ir.Node, computed: set[ir.Value]) -> bool:
    """Whether the results of a node are constant; adds them to ``computed``."""
    has_graph = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
    if node.domain or has_graph or node.op_type in _RANDOM or any(value.dtype is None for value in node.outputs):
        return False
    constant = all(value is None or value in computed or _is_small(value) for value in node.inputs)
    if constant:
        computed.update(node.outputs)
    return constant


def _is_small(value: ir.Value) -> bool:
    tensor = None if value.is_graph_input() else value.const_value
    return tensor is not None and tensor.size <= _SMALL


def _is_wanted(value: ir.Value, computed: set[ir.Value]) -> bool:
    """Whether an integer or a boolean is read by a node that is not computed."""
    return value.dtype in _COUNTED and any(use.node.outputs[0] not in computed for use in value.uses())


def _results(graph: ir.Graph, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> list[NDArray[np.generic]]:
    if not wanted:
        return []
    made = {value for node in nodes for value in node.outputs}
    given = {value for node in nodes for value in node.inputs if value is not None and value not in made}
    view = ir.GraphView(
        [], wanted, nodes=nodes, initializers=list(given), opset_imports=dict(graph.opset_imports), name="shapes"
    )
    model = ir.Model(view.clone(), ir_version=IR_VERSION)
    common.RemoveUnusedNodesPass()(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    content = ir.to_proto(model).SerializeToString()
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime lacks a kernel for one of them: then all stay, as the run computes them
        return []
    return list(session.run(None, {}))


def _replace(value: ir.Value, array: NDArray[np.generic]) -> None:
    graph = value.graph
    assert graph is not None
    value.replace_all_uses_with(new_initializer(graph, f"{value.name}.folded", np.asarray(array)))
