"""Makes frozen tensors that were inputs of an export initializers, which refer to torch's memory.

Nothing is copied: a transposed tensor is a view, and half precision becomes float32 when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from onnxscript.optimizer import fold_constants
from torch import Tensor

from edgepeft_export.graph.constants import Widened


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
    if frozen:
        fold_constants(model)


def _transposes(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and not node.domain and not node.outputs[0].is_graph_output()


def _stored(tensor: Tensor, name: str) -> ir.TensorProtocol:
    """The tensor's own memory, transposed where it is a transposed view."""
    if tensor.dtype == torch.bfloat16:
        narrow = tensor.view(torch.uint16).numpy().view(ir.DataType.BFLOAT16.numpy())
        return Widened(ir.Tensor(narrow, dtype=ir.DataType.BFLOAT16, name=name))
    array = tensor.numpy()
    return Widened(ir.Tensor(array, name=name)) if tensor.dtype == torch.float16 else ir.Tensor(array, name=name)


def _initializer(graph: ir.Graph, name: str, tensor: Tensor, kind: ir.TypeProtocol | None) -> ir.Value:
    if name in graph.initializers:
        graph.initializers[name].name = f"{name}.other"
    stored = _stored(tensor, name)
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=kind, const_value=stored)
    graph.register_initializer(value)
    return value
