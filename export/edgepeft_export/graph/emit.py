"""Writes ONNX nodes into a graph: the one place where nodes, constants and runtime shapes are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.shapes import Dim, dims_of, dtype_of, static_dims

Attribute = int | float | str | Sequence[int] | Sequence[float] | ir.TensorProtocol | ir.Graph


class Emitter:
    """Appends nodes at the end of a graph, and shares the constants and shapes they ask for.

    Args:
        graph: the graph to write into.
        scope: prefix of the names of new nodes; gradient nodes carry the forward node's name there, so that an error of
            the runtime leads back to a layer.
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
        """Append a node with one output and return it. Its dtype is that of its operands, unless ONNX says another."""
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
        """An initializer holding ``array``; equal constants are shared. Not for tensors that train or are large."""
        array = np.asarray(array, order="C")  # (ascontiguousarray would give a scalar a dimension)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._fresh_name("constant")
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def stored(self, name: str, content: NDArray[np.generic] | ir.TensorProtocol) -> ir.Value:
        """The initializer of that name, made of ``content`` where there is none yet: for what is large and frozen."""
        found = self.graph.initializers.get(name)
        if found is None:
            tensor = ir.tensor(content, name=name) if isinstance(content, np.ndarray) else content
            found = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
            found.const_value = tensor
            self.graph.register_initializer(found)
            self._names.add(name)
        return found

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """A constant of rank 0 with the dtype of ``like``."""
        return self.constant(np.asarray(number, dtype=dtype_of(like).numpy()))

    def ints(self, *numbers: int) -> ir.Value:
        """A constant int64 vector, as axes, shapes and pads are given."""
        return self.constant(np.asarray(numbers, dtype=np.int64))

    def shape_of(self, value: ir.Value) -> ir.Value:
        """The shape of ``value`` as an int64 vector: a constant where it is known, else read at run time.

        Tensors whose dimensions have the same names share one vector, taken from the graph's inputs where they have
        those names: reading the shape of a tensor would keep it in memory until then.
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
            source, at = self._inputs_by_size.get(size, (value, axis))
            self._sizes[size] = self.op("Shape", source, start=at, end=at + 1)
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
        """The sum of values of one shape."""
        assert values
        if len(values) == 1:
            return values[0]
        return self.op("Add", *values) if len(values) == 2 else self.op("Sum", *values)

    def sum_to(self, value: ir.Value, shape: Sequence[Dim], target: ir.Value) -> ir.Value:
        """Sum ``value``, whose dimensions are ``shape``, over what broadcasting added, down to the shape of ``target``.

        Where the names of two symbolic dimensions leave open whether one of them was broadcast, the axes are found at
        run time.
        """
        wanted = dims_of(target)
        added = len(shape) - len(wanted)
        pairs = list(zip(shape[added:], wanted, strict=True))
        if any(_may_broadcast(have, want) for have, want in pairs):
            return self._sum_to_at_run_time(value, len(shape), target)
        if added:
            value = self.op("ReduceSum", value, self.ints(*range(added)), keepdims=0)
        stretched = [axis for axis, (have, want) in enumerate(pairs) if want == 1 and have != 1]
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
        name = f"{stem}.{number}"
        self._names.add(name)
        return name


def _may_broadcast(have: Dim, want: Dim) -> bool:
    """Whether only the run can tell if a dimension ``have`` came of stretching ``want``."""
    differs = have != want or want is None
    return want != 1 and differs and not (isinstance(want, int) and want > 1)


def _inputs_by_size(graph: ir.Graph) -> dict[str, tuple[ir.Value, int]]:
    """For the name of each symbolic dimension, the first input of the graph that has it, and where."""
    found: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, size in enumerate(dims_of(value) if value.shape is not None else ()):
            if isinstance(size, str):
                found.setdefault(size, (value, axis))
    return found


def _names(graph: ir.Graph) -> set[str | None]:
    """The names of all tensors of a graph."""
    made = {output.name for node in graph for output in node.outputs}
    return made | {value.name for value in (*graph.inputs, *graph.initializers.values())}


_INT_OUTPUT = {"Shape": ir.DataType.INT64, "Size": ir.DataType.INT64, "NonZero": ir.DataType.INT64}
_BOOL_OUTPUT = {"Equal", "Not", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "IsNaN", "IsInf"}


_TYPED_BY = {"Where": 1, "DequantizeLinear": 1, "OneHot": 2}
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
