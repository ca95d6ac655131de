"""Ensures that a transposition of the last two axes is one Transpose node.

Pattern: ``Reshape(Transpose(Reshape(x, [-1, m, n]), perm=[0, 2, 1]), [..., n, m])``, with shapes read at run time.
That is how torch's exporter writes the transposed key of scaled dot-product attention.
Algebra: the leading axes are flattened and restored in the same order, so this is ``Transpose(x)`` of the last two
axes. That is free where the kernel folds it into the matmul, and its shape is known.
"""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.edit import replace_node
from edgepeft_export.graph.match import producer_of
from edgepeft_export.graph.shapes import dims_of

Token = int | tuple[ir.Value, int]
"""An entry of an int64 vector: a number, or an axis of some value's shape."""


def transpose_last_two(model: ir.Model) -> bool:
    """Replace each ``Reshape(Transpose(Reshape(x)))`` that swaps the last two axes of ``x``.

    Returns whether there was one.
    """
    replaced = False
    for last in list(model.graph):
        source = _swapped_source(last)
        if source is None:
            continue
        axes = list(range(len(dims_of(source))))
        axes[-2:] = axes[-1], axes[-2]
        node = ir.node("Transpose", [source], {"perm": axes}, name=f"{last.name}/transpose")
        last.outputs[0].shape = None  # the reshape's; inference names the sizes as the source does
        replace_node(last, node)
        replaced = True
    return replaced


def _swapped_source(last: ir.Node) -> ir.Value | None:
    """The tensor whose last two axes the chain ending in ``last`` swaps, or ``None`` where it is no such chain."""
    if last.op_type != "Reshape" or last.outputs[0].is_graph_output():
        return None
    middle = producer_of(last.inputs[0], "Transpose")
    first = producer_of(middle.inputs[0], "Reshape") if middle is not None else None
    if middle is None or first is None or list(middle.attributes["perm"].as_ints()) != [0, 2, 1]:
        return None
    source = first.inputs[0]
    if source is None or source.shape is None or len(source.shape) < 3:
        return None
    size = len(source.shape)
    axes: list[Token] = [_axis(source, i) for i in range(size)]
    flat, back = _tokens(first.inputs[1]), _tokens(last.inputs[1])
    flattened = flat is not None and len(flat) == 3 and flat[0] == -1 and flat[1:] == axes[-2:]
    restored = back == [*axes[:-2], axes[-1], axes[-2]]
    return source if flattened and restored else None


def _axis(value: ir.Value, axis: int) -> Token:
    dim = dims_of(value)[axis]
    return dim if isinstance(dim, int) else (value, axis)


def _tokens(value: ir.Value | None) -> list[Token] | None:
    """The entries of an int64 vector that is computed from shapes; ``None`` where it is computed otherwise."""
    if value is None:
        return None
    constant = known_ints(value)
    if constant is not None:
        return list(constant)
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Shape" and node.inputs[0] is not None:
        source, first, last = node.inputs[0], node.attributes.get("start"), node.attributes.get("end")
        axes = range(len(dims_of(source)))[first.as_int() if first else None : last.as_int() if last else None]
        return [_axis(source, axis) for axis in axes]
    if node.op_type == "Concat":
        parts = [_tokens(part) for part in node.inputs]
        return None if any(part is None for part in parts) else [token for part in parts for token in part or ()]
    if node.op_type == "Slice":
        return _slice(node)
    return None


def _slice(node: ir.Node) -> list[Token] | None:
    whole, *bounds = [_tokens(value) for value in node.inputs[:3]]
    if whole is None or any(bound is None or len(bound) != 1 or not isinstance(bound[0], int) for bound in bounds):
        return None
    start, end = (bound[0] for bound in bounds if bound is not None)
    assert isinstance(start, int) and isinstance(end, int)
    return whole[start:end]
