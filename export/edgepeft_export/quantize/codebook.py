"""Ensures that large frozen tensors are stored as uint8 indices into a few float values (Han et al., ICLR 2016).

For the size of the file alone: onnxruntime folds the gather when it loads the graph, so memory and time stay those
of float weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.emit import Emitter

_ROUNDS = 30


def codebook(weight: NDArray[np.generic], size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """1-D k-means over a tensor's values: Lloyd's algorithm on sorted values, started at quantiles.

    Zero keeps a value of its own where the tensor has zeros, so that masks survive.

    Args:
        weight: float, any shape.
        size: values in the codebook, 2 to 256.

    Returns:
        Indices of the weight's shape and at most ``size`` float32 values; ``values[indices]`` is near ``weight``.
    """
    flat = np.asarray(weight, np.float64).ravel()
    filled = np.sort(flat[flat != 0])
    zero = np.zeros(1 if filled.size < flat.size else 0)
    values = np.union1d(_lloyd(filled, size - len(zero)), zero).astype(np.float32)
    middles = (values[1:].astype(np.float64) + values[:-1]) / 2
    indices = np.searchsorted(middles, flat)
    return indices.astype(np.uint8).reshape(np.shape(weight)), values


def _lloyd(ordered: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    distinct = np.unique(ordered)
    if len(distinct) <= size:
        return distinct
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.unique(np.quantile(ordered, (np.arange(size) + 0.5) / size))
    for _ in range(_ROUNDS):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(ordered)]])
        counts = np.diff(bounds)
        moved = np.where(counts > 0, np.diff(sums[bounds]) / np.maximum(counts, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def share_weights(model: ir.Model, size: int, smallest: int, keeps: Callable[[str], bool]) -> None:
    """Store float32 initializers as ``Gather(<name>.codebook, Cast(<name>.indices))``, in place.

    Args:
        model: a graph whose trained tensors are inputs.
        size: values per tensor, 2 to 256.
        smallest: tensors of fewer elements stay float32.
        keeps: whether the tensor of a name stays float32.
    """
    graph, emit = model.graph, Emitter(model.graph)
    for value in list(graph.initializers.values()):
        name, tensor = str(value.name), value.const_value
        if value.dtype != ir.DataType.FLOAT or value.is_graph_output() or tensor is None or keeps(name):
            continue
        if tensor.size >= smallest:
            indices, values = codebook(tensor.numpy(), size)
            emit.scope = name
            stored = emit.op("Cast", emit.stored(f"{name}.indices", indices), to=ir.DataType.INT32)
            shared = emit.op("Gather", emit.stored(f"{name}.codebook", values), stored, axis=0)
            shared.shape = value.shape
            value.replace_all_uses_with(shared)
            del graph.initializers[name]
    graph.sort()  # the new nodes were appended at the end
