"""Ensures that large frozen tensors are stored as uint8 indices into a few float values (Han et al., ICLR 2016).

For the size of the file alone: onnxruntime folds the gather when it loads the graph, so memory and time stay those
of float weights.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.emit import Emitter
from edgepeft_runtime.errors import EdgepeftError

LARGE = 1024
"""Elements from which on a tensor is worth a codebook."""

_ROUNDS = 30


class CodebookError(EdgepeftError):
    """A size no codebook can have."""


def codebook(weight: NDArray[Any], size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """1-D k-means over a tensor's values: Lloyd's algorithm on sorted values, started at quantiles.

    Zero keeps a value of its own where the tensor has zeros, so that masks survive.

    Args:
        weight: float, any shape.
        size: values in the codebook, 2 to 256.

    Returns:
        Indices of the weight's shape and at most ``size`` float32 values; ``values[indices]`` is near ``weight``.

    Raises:
        CodebookError: ``size`` is out of range.
    """
    if not 2 <= size <= 256:
        raise CodebookError(
            "codebook-size", f"A codebook of {size} values is out of range.", context=None, hint="choose 2 to 256."
        )
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


def share_weights(model: ir.Model, size: int, frozen: Collection[str] | None = None) -> list[str]:
    """Store large float32 initializers as ``Gather(values, Cast(indices))``, in place.

    Args:
        model: a graph whose trained tensors are inputs, or not among ``frozen``.
        size: values per tensor, 2 to 256.
        frozen: names of the initializers that may be replaced; default: all.

    Returns:
        The names replaced; the new initializers are called ``<name>.indices`` and ``<name>.codebook``.
    """
    graph, emit = model.graph, Emitter(model.graph)
    chosen = [value for value in list(graph.initializers.values()) if _fits(value, frozen)]
    for value in chosen:
        assert value.const_value is not None
        indices, values = codebook(value.const_value.numpy(), size)
        name = str(value.name)
        emit.scope = name
        stored = emit.op("Cast", _initializer(graph, f"{name}.indices", indices), to=ir.DataType.INT32)
        value.replace_all_uses_with(emit.op("Gather", _initializer(graph, f"{name}.codebook", values), stored, axis=0))
        del graph.initializers[name]
    graph.sort()  # the new nodes were appended at the end
    return [str(value.name) for value in chosen]


def _fits(value: ir.Value, frozen: Collection[str] | None) -> bool:
    if value.const_value is None or value.dtype != ir.DataType.FLOAT or value.is_graph_output():
        return False
    return value.const_value.size >= LARGE and (frozen is None or value.name in frozen)


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
