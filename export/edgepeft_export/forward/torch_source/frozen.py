"""Makes frozen tensors that were inputs of an export initializers, which refer to torch's memory.

Nothing is copied: a tensor becomes an array when it is read, and a transposed one is a view.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxscript.optimizer import fold_constants
from torch import Tensor


def bind_frozen(model: ir.Model, frozen: Mapping[str, Tensor]) -> None:
    """Turn graph inputs into initializers with these values, in place.

    A matrix that is only read transposed is stored so, as ``<name>.T``, and what is computed of small tensors alone is
    computed now: torch's exporter does both with constants.
    """
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in frozen]:
        tensor = frozen[str(value.name)]
        graph.inputs.remove(value)
        uses = list(value.uses())
        if len(uses) == 1 and tensor.ndim == 2 and _transposes(uses[0].node):
            node = uses[0].node
            result = node.outputs[0]
            name = str(value.name)
            value.name = f"{name}.before"
            stored = _initializer(graph, f"{name}.T", tensor.T, result.type)
            result.replace_all_uses_with(stored, replace_graph_outputs=True)
            graph.remove(node, safe=True)
        elif uses:
            stored = _initializer(graph, str(value.name), tensor, value.type)
            value.name = f"{value.name}.before"
            value.replace_all_uses_with(stored, replace_graph_outputs=True)
    fold_constants(model)


def _transposes(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and not node.domain and not node.outputs[0].is_graph_output()


def _view(tensor: Tensor) -> NDArray[np.generic]:
    """The tensor's memory as an array, transposed where it is; half precision becomes float32, in new memory."""
    return np.asarray((tensor if tensor.dtype == torch.float32 else tensor.float()).numpy())


def _initializer(graph: ir.Graph, name: str, tensor: Tensor, kind: ir.TypeProtocol | None) -> ir.Value:
    if name in graph.initializers:
        graph.initializers[name].name = f"{name}.other"
    lazy = ir.LazyTensor(
        lambda: ir.Tensor(_view(tensor), name=name), ir.DataType.FLOAT, ir.Shape(tensor.shape), name=name
    )
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=kind, const_value=lazy)
    graph.register_initializer(value)
    return value
