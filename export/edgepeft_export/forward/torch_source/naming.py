"""Names the values and nodes of an exported graph as the module does."""

from __future__ import annotations

import ast
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepeft_export.forward.torch_source.reference import array

_ROOT = "model."
"""Prefix of all names in a trace: the module that is exported is an attribute of the one that is traced."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata in which the exporter lists the modules around a node, the innermost before the node's own name."""


def rename(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Name inputs and outputs, in place, frozen tensors as in the module's state, and nodes after their modules."""
    graph = model.graph
    assert len(graph.inputs) == len(inputs)
    for value in list(graph.initializers.values()):
        if value.name is not None and value.name.startswith(_ROOT):
            _rename_initializer(graph, value, value.name.removeprefix(_ROOT))
    for node in graph:
        _name_node(node)
    reserved = {*inputs, *outputs}
    for node in graph:
        for value in node.outputs:
            if value.name in reserved:
                value.name = f"{value.name}.inner"
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    name_outputs(graph, outputs)
    return model


def _name_node(node: ir.Node) -> None:
    """Put the name of its module before that of a node: ``layers.0.mlp/linear_3``. All later names begin with it."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    module = next((scope for scope in reversed(scopes[:-1]) if scope.startswith(_ROOT)), "")
    if module and node.name is not None:
        node.name = f"{module.removeprefix(_ROOT)}/{node.name.removeprefix('node_')}"


def name_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Name the outputs. One that is also an input, or is returned twice, gets a node of its own."""
    seen: set[ir.Value] = set()
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if value in seen or value.producer() is None:
            node = ir.node("Identity", [value])
            graph.append(node)
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            value = graph.outputs[index] = node.outputs[0]
        seen.add(value)
        value.name = name


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if name not in graph.initializers:
        value.name = name


def name_folded_weights(graph: ir.Graph, model: nn.Module) -> None:
    """Find the matrices that the exporter folded to transposed constants, and name them ``<parameter>.T``."""
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim == 2}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in state.items():
        by_shape.setdefault(tuple(reversed(tensor.shape)), []).append(name)
    for value in list(graph.initializers.values()):
        named = str(value.name).removesuffix(".T") in state
        if named or value.const_value is None or len(value.const_value.shape) != 2:
            continue
        folded = value.const_value.numpy()
        for name in by_shape.get(folded.shape, ()):
            if _is_transposed(folded, state[name]):
                _rename_initializer(graph, value, f"{name}.T")
                break


def _is_transposed(matrix: NDArray[np.generic], tensor: Tensor) -> bool:
    other = array(tensor).T
    return matrix.dtype == other.dtype and bool(np.array_equal(matrix[0], other[0]) and np.array_equal(matrix, other))
