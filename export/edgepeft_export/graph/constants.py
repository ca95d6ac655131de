"""Static facts about values: their content, the initializer they are computed from, their constant factor.

The content may be in half precision on the host, as in the checkpoint, and in float32 in the graph.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_CARRIES = frozenset({"DequantizeLinear", "QuantizeLinear", "Transpose", "Cast", "Reshape", "Identity", "BitwiseXor"})
"""Operators between a stored weight and the node that multiplies by it."""

MASKED_FRACTION = 0.04
"""Fraction of zeros from which on a weight counts as masked: a mask has 5 % or more, dense weights have next to none.

The zeros are counted because names change on the way to a graph and exact zeros do not.
"""


def known(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The content of a constant or a frozen initializer; ``None`` where it is computed at run time."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def known_ints(value: ir.Value | None) -> list[int] | None:
    """The content of a constant of integers, flat."""
    array = known(value)
    return None if array is None else [int(number) for number in array.reshape(-1)]


def known_number(value: ir.Value | None) -> float | None:
    """A constant of one element, as a number."""
    array = known(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def initializer_array(value: ir.Value) -> NDArray[np.generic]:
    """The content of an initializer."""
    return initializer_tensor(value).numpy()


def initializer_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The content of an initializer, perhaps on the disk or with two numbers in a byte."""
    assert value.const_value is not None, f"{value.name!r} is no initializer"
    return value.const_value


def is_frozen(value: ir.Value | None) -> bool:
    """Whether a value is an initializer, and not the default of an input."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def source_initializer(value: ir.Value | None) -> ir.Value | None:
    """The initializer that a constant is computed from by casts, transpositions and the like, or ``None``."""
    if value is None or value.is_graph_input():
        return None
    node = value.producer()
    if node is None:
        return value if value.const_value is not None else None
    if node.op_type not in _CARRIES or node.domain:
        return None
    sources = [source_initializer(read) for read in node.inputs if read is not None]
    return sources[0] if sources and all(source is not None for source in sources) else None


def same_constant(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether two values are identical, or equal constants."""
    if first is second:
        return True
    left, right = known(first), known(second)
    return left is not None and right is not None and left.dtype == right.dtype and bool(np.array_equal(left, right))


def zero_point_is_zero(value: ir.Value | None) -> bool:
    """Whether a zero point is missing or a constant without effect."""
    array = known(value)
    return value is None or (array is not None and not np.any(array))


def constant_factor(value: ir.Value) -> tuple[float, ir.Value] | None:
    """``(s, x)`` where ``value`` is x · s or x / s, with a constant number ``s`` of rank 0 or 1; else ``None``."""
    node = value.producer()
    if node is None or node.op_type not in ("Mul", "Div") or node.domain:
        return None
    left, right = node.inputs
    for constant, other in ((right, left), (left, right)):
        number, array = known_number(constant), known(constant)
        if number is None or other is None or array is None or array.ndim > 1:
            continue
        if node.op_type == "Mul":
            return number, other
        if constant is right and number != 0.0:
            return 1.0 / number, other
    return None


def new_initializer(graph: ir.Graph, stem: str, array: NDArray[np.generic]) -> ir.Value:
    """Add an initializer named ``stem``, or ``stem.1``, ``stem.2``, ... where that name is taken."""
    name, number = stem, 0
    while name in graph.initializers:
        number += 1
        name = f"{stem}.{number}"
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)  # (ascontiguousarray would give a scalar a dimension)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


class Widened(ir.LazyTensor):
    """A tensor of half precision as float32. It is converted each time it is read, and never kept.

    Args:
        narrow: the tensor in half precision; a matrix may be a transposed view.
    """

    def __init__(self, narrow: ir.TensorProtocol) -> None:
        self.narrow = narrow
        super().__init__(self._wide, ir.DataType.FLOAT, ir.Shape(narrow.shape.numpy()), name=narrow.name)

    def _wide(self) -> ir.TensorProtocol:
        return ir.Tensor(self.narrow.numpy().astype("float32", order="K"), name=self.name)


def stored_array(tensor: ir.TensorProtocol) -> NDArray[np.generic]:
    """A tensor's content as the host has it: two of one dtype are equal where these are."""
    return tensor.narrow.numpy() if isinstance(tensor, Widened) else tensor.numpy()


def same_memory(first: NDArray[np.generic], second: NDArray[np.generic]) -> bool:
    """Whether two arrays are the same memory, read alike."""
    return first is second or (
        first.ctypes.data == second.ctypes.data
        and (first.dtype, first.shape, first.strides) == (second.dtype, second.shape, second.strides)
    )
