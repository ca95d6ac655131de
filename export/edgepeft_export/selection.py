"""The program ``select``: the dense gradients by which a device picks the elements that will train. It runs once."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgepeft_export.autodiff import differentiate
from edgepeft_export.forward.graph import SparseTensor
from edgepeft_export.forward.sparse import dense_values
from edgepeft_export.graph.emit import Emitter


def gradient_name(sparse: SparseTensor) -> str:
    """Name of the output with the gradient of a whole tensor, in the shape of ``SparseTensor.shape``."""
    return f"{sparse.tensor}.gradient"


def selection_graph(with_loss: ir.Model, sparse: Sequence[SparseTensor]) -> ir.Model:
    """A copy of a graph with its loss as first output. It returns only the gradients of these tensors."""
    model = with_loss.clone()
    graph = model.graph
    stored = {part.tensor: dense_values(graph, part) for part in sparse}
    gradients = differentiate(graph, graph.outputs[0], [value for value, _ in stored.values()])
    graph.outputs[:] = []
    emit = Emitter(graph, scope="select")
    for part in sparse:
        value, transposed = stored[part.tensor]
        result = emit.op("Transpose" if transposed else "Identity", gradients[value])
        result.name, result.shape, result.dtype = gradient_name(part), ir.Shape(part.shape), ir.DataType.FLOAT
        graph.outputs.append(result)
    return model
