"""Trains chosen elements of a frozen tensor, as values with their indices: ``W + scatter(indices, values)``.

SIFT (Song et al., ICML 2024), and sparse fine-tuning methods that pick indices in other ways. The sum is one
``ScatterND``, whose gradient is a gather, so no dense gradient is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.errors import BadSparseSelection
from edgepeft_export.forward.graph import Forward, SparseTensor
from edgepeft_export.graph.edit import add_input, input_named
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import infer_shapes

Indices = NDArray[np.int32]


@dataclass(frozen=True)
class ElementChoice:
    """The elements of a parameter that will train.

    Attributes:
        count: the number of elements.
        indices: their flat indices, ascending, in row-major order. ``None`` lets the device pick by the gradient.
        batches: number of batches over which the device sums the gradient's magnitudes before it picks.
    """

    count: int
    indices: Indices | None = None
    batches: int = 1


def train_elements(forward: Forward, choices: Mapping[str, ElementChoice]) -> Forward:
    """A copy in which only some elements of these parameters train.

    Args:
        forward: has the parameters as trainable inputs of at least one dimension.
        choices: the elements that train, by the parameter's name.

    Returns:
        For each parameter ``W``: ``W`` is an initializer, ``W.values`` (float32 [count]) trains, and ``W.indices``
            (int32 [count], -1 where the device has yet to pick) are the flat indices of the values.
    """
    model = forward.model.clone()
    graph, parameters = model.graph, dict(forward.parameters)
    emit = Emitter(graph)
    sparse = []
    for name, choice in choices.items():
        weight = parameters.pop(name)
        _check_choice(name, weight, choice)
        entry = SparseTensor(name, weight.shape, _first_indices(choice), choice.batches)
        parameters[entry.values] = np.zeros(choice.count, np.float32)
        _replace(graph, emit, entry, weight)
        sparse.append(entry)
    graph.sort()  # the new nodes were appended at the end
    infer_shapes(model)
    return replace(forward, model=model, parameters=parameters, sparse=(*forward.sparse, *sparse))


def dense_values(graph: ir.Graph, sparse: SparseTensor) -> tuple[ir.Value, bool]:
    """The initializer of a sparse tensor in a graph, and whether it is stored transposed."""
    node = next(use.node for use in input_named(graph, sparse.values).uses() if use.node.op_type == "ScatterND")
    dense = operand(node)
    return dense, dense.name != sparse.tensor


def _replace(graph: ir.Graph, emit: Emitter, sparse: SparseTensor, weight: NDArray[np.generic]) -> None:
    """Replace the input by the sum, already transposed where all its readers transpose it."""
    source, emit.scope = input_named(graph, sparse.tensor), sparse.tensor
    graph.inputs.remove(source)
    transposes = [use.node for use in source.uses()]
    transposed = weight.ndim == 2 and bool(transposes) and all(_transposes(node) for node in transposes)
    stored = emit.stored(f"{sparse.tensor}.T", np.ascontiguousarray(weight.T)) if transposed else source
    if not transposed:
        source.const_value = ir.tensor(weight, name=sparse.tensor)
        readers = list(source.uses())
        graph.register_initializer(source)
    values = add_input(graph, sparse.values, [len(sparse.initial_indices)])
    indices = add_input(graph, sparse.indices, [len(sparse.initial_indices)], ir.DataType.INT32)
    position = _position(emit, indices, weight.shape, transposed)
    total = emit.op("ScatterND", stored, position, values, reduction="add")
    total.name = f"{sparse.tensor}.trained"
    total.shape, total.type = ir.Shape(weight.T.shape if transposed else weight.shape), ir.TensorType(ir.DataType.FLOAT)
    if transposed:
        for node in transposes:
            node.outputs[0].replace_all_uses_with(total)
            graph.remove(node, safe=True)
    else:
        for use in readers:
            use.node.replace_input_with(use.idx, total)


def _transposes(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and not node.outputs[0].is_graph_output()


def _position(emit: Emitter, indices: ir.Value, shape: tuple[int, ...], transposed: bool) -> ir.Value:
    """Positions [count, rank] of flat indices; -1 is the last element, to which 0 is added."""
    rest, axes = emit.op("Cast", indices, to=ir.DataType.INT64), []
    for size in reversed(shape[1:]):
        # a non-negative remainder, as integer division in ONNX truncates and Mod follows the divisor's sign
        axes.append(emit.op("Mod", rest, emit.ints(size)))
        rest = emit.op("Div", emit.op("Sub", rest, axes[-1]), emit.ints(size))
    axes.append(rest)
    columns = [emit.op("Unsqueeze", axis, emit.ints(1)) for axis in (axes if transposed else reversed(axes))]
    return columns[0] if len(columns) == 1 else emit.op("Concat", *columns, axis=1)


def _first_indices(choice: ElementChoice) -> Indices:
    if choice.indices is None:
        return np.full(choice.count, -1, np.int32)
    return np.asarray(choice.indices, np.int32)


def _check_choice(name: str, weight: NDArray[np.generic], choice: ElementChoice) -> None:
    fits = 1 <= choice.count <= weight.size < 2**31 and weight.ndim > 0
    if choice.indices is not None:
        indices = np.asarray(choice.indices)
        ascending = bool((np.diff(indices) > 0).all()) and indices.min() >= 0 and indices.max() < weight.size
        fits = fits and indices.shape == (choice.count,) and ascending
    if not fits:
        raise BadSparseSelection(
            f"{choice.count} elements of {name}, which has {weight.size:,}, cannot train.",
            context=f"shape {list(weight.shape)}",
            hint="choose at least one element, and ascending indices within the tensor.",
        )
