"""Find how many positions a model has: the largest sizes for which no lookup leaves its table.

A learned table of positions is read at indices that grow with the size of an input. Neither torch nor a file says how
many there are, and past the table ONNX Runtime fails in the middle of a step. So what computes the indices is run alone
for inputs of two sizes, and the last size within the table follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgepeft_export.forward.graph import Forward, SizeRange
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.opset import IR_VERSION

_MOST_NODES, _MOST_ELEMENTS = 64, 2**14
"""What computes positions is small; anything else is a network."""
_FILLS = (1, 2)
"""Token ids and masks: some models count positions where the id is not that of the padding, which is often 1."""


@dataclass(frozen=True)
class _Lookup:
    """The indices of one ``Gather``, and the rows of its table."""

    indices: ir.Value
    rows: int


def with_table_limits(forward: Forward) -> Forward:
    """Limit the free sizes to those for which every lookup stays in its table."""
    limits = dict(forward.limits)
    for lookup in _lookups(forward):
        for name, most in _limits(lookup, forward):
            known = limits.get(name, SizeRange())
            if known.most is None or most < known.most:
                limits[name] = replace(known, most=most)
    return replace(forward, limits=limits)


def _lookups(forward: Forward) -> Iterator[_Lookup]:
    for node in forward.model.graph:
        table, indices = (*node.inputs, None, None)[:2]
        if node.op_type != "Gather" or table is None or indices is None or table.producer() is not None:
            continue
        axis = node.attributes.get_int("axis", 0)
        rows = dims_of(table)[axis] if table.shape is not None and table.name not in forward.inputs else None
        if isinstance(rows, int) and indices.producer() is not None:
            yield _Lookup(indices, rows)


def _limits(lookup: _Lookup, forward: Forward) -> Iterator[tuple[str, int]]:
    """The largest size of each free dimension with which the indices grow."""
    part = _part(lookup.indices)
    if part is None:
        return
    session, inputs = part
    names = {dim for value in inputs for dim in dims_of(value) if isinstance(dim, str)}
    for name in sorted(names):
        for fill in _FILLS:

            def largest(size: int, name: str = name, fill: int = fill) -> int:
                return _largest(session, inputs, {name: size}, fill)

            found = _last_size(largest, lookup.rows, forward.limits.get(name, SizeRange()).least)
            if found is not None:
                yield name, found


def _last_size(largest: Callable[[int], int], rows: int, least: int) -> int | None:
    """The last size whose largest index is in the table; ``None`` where the indices do not grow past it."""
    first = max(least, 2)
    try:
        start = largest(first)
        step = largest(first + 1) - start
        if step <= 0:
            return None
        last = first + (rows - 1 - start) // step
        return last if last >= least and largest(last) < rows <= largest(last + 1) else None
    except Exception:  # onnxruntime's exceptions have no class in common but this one; the graph is not of this kind
        return None


def _part(indices: ir.Value) -> tuple[ort.InferenceSession, list[ir.Value]] | None:
    """What computes the indices as a graph of its own, and its inputs; ``None`` if that is more than positions."""
    nodes, todo, given = set(), [indices], set()
    while todo:
        value = todo.pop()
        node = value.producer()
        if node is None:
            given.add(value)
        elif node not in nodes:
            nodes.add(node)
            todo += [value for value in node.inputs if value is not None]
        if len(nodes) > _MOST_NODES:
            return None
    inputs = [value for value in given if value.is_graph_input()]
    constants = [value for value in given if not value.is_graph_input()]
    if not inputs or any(value.const_value is None or value.const_value.size > _MOST_ELEMENTS for value in constants):
        return None
    graph = indices.producer().graph  # type: ignore[union-attr]
    assert isinstance(graph, ir.Graph)
    opsets, ordered = dict(graph.opset_imports), [node for node in graph if node in nodes]
    view = ir.GraphView(
        inputs, [indices], nodes=ordered, initializers=constants, opset_imports=opsets, name="positions"
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    content = ir.to_proto(ir.Model(view.clone(), ir_version=IR_VERSION)).SerializeToString()
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]), inputs
    except Exception:  # a kernel is missing, or a node reads a value of an outer graph
        return None


def _largest(session: ort.InferenceSession, inputs: list[ir.Value], sizes: Mapping[str, int], fill: int) -> int:
    """The largest index for inputs of this size, filled with one number; other free sizes are 2."""
    feeds = {}
    for value in inputs:
        shape = [dim if isinstance(dim, int) else sizes.get(str(dim), 2) for dim in dims_of(value)]
        assert value.dtype is not None
        feeds[str(value.name)] = np.full(shape, fill, value.dtype.numpy())
    (found,) = session.run(None, feeds)
    return int(np.max(found))
