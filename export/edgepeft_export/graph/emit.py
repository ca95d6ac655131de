"""The emitter: appends nodes, constants and runtime shapes to an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.shapes import Dim, dims_of, dtype_of, static_dims

Attribute = int | float | str | Sequence[int] | Sequence[float] | ir.TensorProtocol | ir.Graph


class Emitter:
    """Appends nodes at the end of a graph, and shares their constants and shapes.

    Args:
        graph: the graph to write into.
        scope: prefix of the names of new nodes. Gradient nodes have the forward node's name there, so that a runtime
            error leads back to a layer.
    """

    def __init__(self, graph: ir.Graph, scope: str = "") -> None:
        self.graph = graph
        self.scope = scope
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._shapes: dict[ir.Value | tuple[Dim, ...], ir.Value] = {}
        self._sizes: dict[str, ir.Value] = {}
        self._inputs_by_size = _inputs_by_size(graph)
        self._names = _names(graph)

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Attribute) -> ir.Value:
        """Append a node and return its one output. Its dtype is that of its operands, unless ONNX defines another."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Attribute
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        node.name = f"{self.scope}/{op_type}" if self.scope else None
        self.graph.append(node)
        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        for output in node.outputs:
            dtype = _output_dtype(node)
            output.type = None if dtype is None else ir.TensorType(dtype)
        return node.outputs

    def constant(self, array: NDArray[np.generic]) -> ir.Value:
        """An initializer with the content ``array``. Equal ones are shared. Not for tensors that train or are large."""
        array = np.asarray(array, order="C")  # (ascontiguousarray would give a scalar a dimension)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._fresh_name("constant")
            self._constants[key] = self._register(name, ir.tensor(array, name=name))
        return self._constants[key]

    def _register(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        shape, dtype = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=shape, type=dtype, const_value=tensor)
        self.graph.register_initializer(value)
        self._names.add(name)
        return value

    def stored(self, name: str, content: NDArray[np.generic] | ir.TensorProtocol) -> ir.Value:
        """The initializer of that name, created from ``content`` where there is none yet. For large frozen tensors."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(content, name=name) if isinstance(content, np.ndarray) else content
            self._register(name, tensor)
        return self.graph.initializers[name]

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """A constant of rank 0 with the dtype of ``like``."""
        return self.constant(np.asarray(number, dtype=dtype_of(like).numpy()))

    def ints(self, *numbers: int) -> ir.Value:
        """A constant int64 vector, for axes, shapes and pads."""
        return self.constant(np.asarray(numbers, dtype=np.int64))

    def index(self, number: int) -> ir.Value:
        """A constant int64 of rank 0."""
        return self.constant(np.asarray(number, dtype=np.int64))

    def shape_of(self, value: ir.Value) -> ir.Value:
        """The shape of ``value`` as an int64 vector: a constant where it is known, else read at run time.

        Tensors whose dimensions have the same names share one vector, read from the graph's inputs where they have
        those names. Reading the shape of a tensor would keep it in memory until then.
        """
        static = static_dims(value)
        if static is not None:
            return self.ints(*static)
        dims = None if value.shape is None else tuple(dims_of(value))
        if dims is None or None in dims:
            return self._once(value, lambda: self.op("Shape", value))
        return self._once(dims, lambda: self._join([self.dim(value, axis) for axis in range(len(dims))]))

    def dim(self, value: ir.Value, axis: int) -> ir.Value:
        """One dimension of ``value`` as an int64 vector of length 1."""
        dims = dims_of(value)
        axis %= len(dims)
        size = dims[axis]
        if isinstance(size, int):
            return self.ints(size)
        if size is None:
            return self.op("Shape", value, start=axis, end=axis + 1)
        if size not in self._sizes:
            source, axis = self._inputs_by_size.get(size, (value, axis))
            self._sizes[size] = self.op("Shape", source, start=axis, end=axis + 1)
        return self._sizes[size]

    def _once(self, key: ir.Value | tuple[Dim, ...], make: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._shapes:
            self._shapes[key] = make()
        return self._shapes[key]

    def _join(self, vectors: Sequence[ir.Value]) -> ir.Value:
        return vectors[0] if len(vectors) == 1 else self.op("Concat", *vectors, axis=0)

    def zeros(self, shape: ir.Value, like: ir.Value) -> ir.Value:
        """Zeros of a runtime ``shape`` (int64 vector) with the dtype of ``like``."""
        fill = ir.tensor(np.zeros(1, dtype=dtype_of(like).numpy()))
        zeros = self.op("ConstantOfShape", shape, value=fill)
        zeros.dtype = dtype_of(like)
        return zeros

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` with another dtype; itself where it has that dtype."""
        return value if value.dtype == dtype else self.op("Cast", value, to=int(dtype))

    def add(self, values: Sequence[ir.Value]) -> ir.Value:
        """The sum of values of one shape. ``Sum`` would use one thread."""
        return reduce(partial(self.op, "Add"), values)

    def sum_to(self, value: ir.Value, shape: Sequence[Dim], target: ir.Value) -> ir.Value:
        """Sum ``value``, whose dimensions are ``shape``, over what broadcasting added, down to the shape of ``target``.

        Where the names of two symbolic dimensions leave open whether one was broadcast, the axes are determined at run
        time.
        """
        wanted = dims_of(target)
        added = len(shape) - len(wanted)
        pairs = list(zip(shape[added:], wanted, strict=True))
        if any(_may_broadcast(have, want) for have, want in pairs):
            return self._sum_to_at_run_time(value, len(shape), target)
        stretched = [axis for axis, (have, want) in enumerate(pairs) if want == 1 and have != 1]
        static = static_dims(target)
        if added and stretched and static is not None:  # at once: the sum over rows alone would be as large as a row
            axes = self.ints(*range(added), *(added + axis for axis in stretched))
            return self.op("Reshape", self.op("ReduceSum", value, axes, keepdims=0), self.ints(*static))
        if added:
            value = self.op("ReduceSum", value, self.ints(*range(added)), keepdims=0)
        if stretched:
            value = self.op("ReduceSum", value, self.ints(*stretched), keepdims=1)
        return value

    def _sum_to_at_run_time(self, value: ir.Value, rank: int, target: ir.Value) -> ir.Value:
        target_shape = self.shape_of(target)
        missing = rank - len(dims_of(target))
        padded = self.op("Concat", self.ints(*[1] * missing), target_shape, axis=0) if missing else target_shape
        differs = self.op("Not", self.op("Equal", self.op("Shape", value), padded))
        axes = self.op("Squeeze", self.op("NonZero", differs), self.ints(0))
        summed = self.op("ReduceSum", value, axes, keepdims=1, noop_with_empty_axes=1)
        return self.op("Reshape", summed, target_shape, allowzero=1)

    def _fresh_name(self, stem: str) -> str:
        number = len(self._names)
        while f"{stem}.{number}" in self._names:
            number += 1
        return f"{stem}.{number}"


def _may_broadcast(have: Dim, want: Dim) -> bool:
    """Whether it is open until run time if a dimension ``have`` was broadcast from ``want``."""
    differs = have != want or want is None
    return want != 1 and differs and not (isinstance(want, int) and want > 1)


def _inputs_by_size(graph: ir.Graph) -> dict[str, tuple[ir.Value, int]]:
    """For the name of each symbolic dimension, the first input of the graph that has it, and its axis."""
    axes: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, size in enumerate(dims_of(value) if value.shape is not None else ()):
            if isinstance(size, str):
                axes.setdefault(size, (value, axis))
    return axes


def _names(graph: ir.Graph) -> set[str | None]:
    """The names of all tensors of a graph."""
    made = {output.name for node in graph for output in node.outputs}
    return made | {value.name for value in (*graph.inputs, *graph.initializers.values())}


_INT_OUTPUT = {"Shape": ir.DataType.INT64, "Size": ir.DataType.INT64, "NonZero": ir.DataType.INT64}
_BOOL_OUTPUT = {"Equal", "Not", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "IsNaN", "IsInf"}


_TYPED_BY = {"Map": 1, "Where": 1, "DequantizeLinear": 1, "OneHot": 2}
"""The input that has the output's dtype, where that is not the first."""


def _output_dtype(node: ir.Node) -> ir.DataType | None:
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in _BOOL_OUTPUT:
        return ir.DataType.BOOL
    if node.op_type in _INT_OUTPUT:
        return _INT_OUTPUT[node.op_type]
    index = _TYPED_BY.get(node.op_type, 0)
    first = node.inputs[index] if len(node.inputs) > index else None
    return first.dtype if first is not None else None
