"""Edits of a graph in place, by the verbs of ``onnx_ir.editing`` (ONNX IR 1.2)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def bind_inputs(graph: ir.Graph, values: Mapping[str, NDArray[np.generic]]) -> set[ir.Value]:
    """Turn the graph inputs named in ``values`` into initializers, and return them.

    A value may have another shape than its input, as the pairs of a stack do: then shapes between the nodes are
    dropped, for onnxruntime to infer.
    """
    inputs = [value for value in graph.inputs if value.name in values]
    if any(value.shape != values[str(value.name)].shape for value in inputs):
        _forget_shapes(graph)
    for value in inputs:
        graph.inputs.remove(value)
        value.const_value = ir.tensor(values[str(value.name)], name=value.name)
        value.shape = ir.Shape(values[str(value.name)].shape)
        graph.register_initializer(value)
    return set(inputs)


def _forget_shapes(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
