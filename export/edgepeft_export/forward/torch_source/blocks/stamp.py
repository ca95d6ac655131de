"""Writes blocks that were not traced into a graph, as copies of an equal one with parameters of their own.

Pattern: ``Boundary(x) ... Boundary(y)`` around each traced block. Two traced blocks are equal if their results are the
same function of the block's input, its own parameters and values from outside: the same operators with the same
attributes and constants, compared from the results backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgepeft_export.forward.torch_source.blocks.stack import Stack
from edgepeft_export.forward.torch_source.blocks.trace import BOUNDARY, start_of
from edgepeft_export.graph.custom_ops import DOMAIN


class BlocksDiffer(Exception):
    """Blocks that seemed equal have different graphs; the module has to be traced as a whole."""


def stamp(model: ir.Model, stacks: Sequence[Stack]) -> None:
    """Add the missing blocks of all stacks, in place, and remove the boundaries.

    The graph's inputs include the blocks' parameters, by their names. Those of new blocks are appended to the inputs.

    Raises:
        BlocksDiffer: two blocks that should be equal are not.
    """
    boundaries = {
        node.attributes["number"].as_int(): node
        for node in model.graph
        if node.domain == DOMAIN and node.op_type == BOUNDARY
    }
    first = 0
    for stack in stacks:
        blocks = {index: _block(model.graph, stack, index, first + index, boundaries) for index in stack.traced}
        for one, other in stack.equal:
            _check_equal(blocks[one], blocks[other])
        _fill(model.graph, stack, blocks)
        first += len(stack.blocks)
    for node in boundaries.values():
        (x,), (y,) = node.inputs, node.outputs
        assert x is not None
        y.replace_all_uses_with(x, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    if not any(node.domain == DOMAIN for node in model.graph):
        model.graph.opset_imports.pop(DOMAIN, None)
    model.graph.sort()


class _Block:
    """A traced block.

    Attributes:
        start, end: its boundaries.
        x: its input.
        own: the graph inputs that are its own, by the part of their names that all blocks have in common.
        results: its output, under the empty name, and the graph outputs that are its own.
        inside: all values that depend on ``x`` or ``own``, in the order of the graph.
    """

    def __init__(self, graph: ir.Graph, stack: Stack, index: int, start: ir.Node, end: ir.Node) -> None:
        result = end.inputs[0]
        assert result is not None
        self.start, self.end, self.x = start, end, start.outputs[0]
        self.own = _of_block(graph.inputs, stack, index)
        self.results = {"": result} | {name: value for value, name in _of_block(graph.outputs, stack, index).items()}
        self.inside = dict.fromkeys([self.x, *self.own])
        for node in graph:
            if node is not end and any(value in self.inside for value in node.inputs):
                self.inside.update(dict.fromkeys(node.outputs))

    def nodes(self) -> list[ir.Node]:
        """The nodes that its results need and that are its own, in the order of the graph."""
        needed: set[ir.Value] = set()
        waiting = list(self.results.values())
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if value in self.inside and value not in needed and value is not self.x:
                needed.add(value)
                waiting.extend(read for read in (node.inputs if node is not None else ()) if read is not None)
        nodes = dict.fromkeys(value.producer() for value in self.inside if value in needed)
        return [node for node in nodes if node is not None]


def _of_block(values: Sequence[ir.Value], stack: Stack, index: int) -> dict[ir.Value, str]:
    owners = {value: stack.owner(str(value.name)) for value in values}
    return {value: owner[1] for value, owner in owners.items() if owner is not None and owner[0] == index}


def _block(graph: ir.Graph, stack: Stack, index: int, number: int, boundaries: Mapping[int, ir.Node]) -> _Block:
    start, end = boundaries.get(start_of(number)), boundaries.get(start_of(number) + 1)
    if start is None or end is None:
        raise BlocksDiffer(f"the exporter dropped a boundary of {stack.blocks[index]}")
    return _Block(graph, stack, index, start, end)


def _check_equal(one: _Block, other: _Block) -> None:
    if one.results.keys() != other.results.keys() or sorted(one.own.values()) != sorted(other.own.values()):
        raise BlocksDiffer("they have other tensors or results")
    comparison = _Comparison(one, other)
    for name, result in one.results.items():
        if not comparison.equal(result, other.results[name]):
            raise BlocksDiffer(f"their graphs differ: {comparison.reason}")


class _Comparison:
    """Compares values of two blocks as functions of the blocks' inputs, own tensors and values from outside."""

    def __init__(self, one: _Block, other: _Block) -> None:
        self._one, self._other = one, other
        self._known: dict[tuple[ir.Value, ir.Value], bool] = {(one.x, other.x): True}
        self.reason = ""

    def equal(self, a: ir.Value, b: ir.Value) -> bool:
        """Whether ``a`` depends on the first block as ``b`` on the second. No recursion: graphs are deep."""
        waiting = [(a, b)]
        while waiting:
            pair = waiting[-1]
            if pair in self._known:
                waiting.pop()
                continue
            below = self._below(*pair)
            if below is None:
                self.reason = f"{_said(pair[0])} and {_said(pair[1])}"
                return False
            missing = [other for other in below if other not in self._known]
            if not missing:
                self._known[pair] = True
                waiting.pop()
            waiting.extend(missing)
        return True

    def _below(self, a: ir.Value, b: ir.Value) -> list[tuple[ir.Value, ir.Value]] | None:
        """The pairs on whose equality that of two values depends; ``None`` where they differ."""
        own, others = self._one.own.get(a), self._other.own.get(b)
        if own is not None or others is not None:
            return [] if own == others and a.dtype == b.dtype and a.shape == b.shape else None
        if a is self._one.x or b is self._other.x:
            return None  # the pair of both is known
        if a is b:
            return None if a in self._one.inside or a in self._other.inside else []  # else it comes from outside
        left, right = ir.convenience.get_const_tensor(a), ir.convenience.get_const_tensor(b)
        if left is not None and right is not None:
            return [] if _same_tensor(left, right) else None
        one, other = a.producer(), b.producer()
        if one is None or other is None or not _same_node(one, other) or a.index() != b.index():
            return None
        pairs = list(zip(one.inputs, other.inputs, strict=True))
        if any((x is None) != (y is None) for x, y in pairs):
            return None
        return [(x, y) for x, y in pairs if x is not None and y is not None]


def _same_node(a: ir.Node, b: ir.Node) -> bool:
    same = (a.domain, a.op_type, a.overload, len(a.inputs), len(a.outputs)) == (
        b.domain,
        b.op_type,
        b.overload,
        len(b.inputs),
        len(b.outputs),
    )
    return (
        same
        and a.attributes.keys() == b.attributes.keys()
        and all(_same_attribute(value, b.attributes[name]) for name, value in a.attributes.items())
    )


def _same_attribute(a: ir.Attr, b: ir.Attr) -> bool:
    if a.type != b.type or a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return False
    if a.type == ir.AttributeType.TENSOR:
        return _same_tensor(a.as_tensor(), b.as_tensor())
    return bool(a.value == b.value)


def _same_tensor(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a.dtype != b.dtype or tuple(a.shape.numpy()) != tuple(b.shape.numpy()):
        return False
    return bool(np.array_equal(a.numpy(), b.numpy(), equal_nan=a.dtype.is_floating_point()))


def _said(value: ir.Value) -> str:
    node = value.producer()
    return f"{value.name} ({'no node' if node is None else node.op_type})"


def _fill(graph: ir.Graph, stack: Stack, blocks: Mapping[int, _Block]) -> None:
    """Put the missing blocks between the traced ones, and after them."""
    end = blocks[stack.traced[-1]].end.outputs[0]
    readers, is_output = list(end.uses()), end.is_graph_output()
    last = blocks[0].end.outputs[0]  # the first block is always traced
    for index, like in enumerate(stack.like[1:], start=1):
        if index == like:
            blocks[index].start.replace_input_with(0, last)
            last = blocks[index].end.outputs[0]
        else:
            last = _copy(graph, stack, blocks[like], index, last)
    if last is not end:
        for use in readers:
            use.node.replace_input_with(use.idx, last)
        if is_output:
            graph.outputs[:] = [last if output is end else output for output in graph.outputs]


def _copy(graph: ir.Graph, stack: Stack, block: _Block, index: int, x: ir.Value) -> ir.Value:
    """Append a block that reads ``x``, and return its result."""
    new = {block.x: x}
    for value in block.own:
        new[value] = ir.Value(name=stack.renamed(str(value.name), index), shape=_shape(value), type=value.type)
        graph.inputs.append(new[value])
    for node in block.nodes():
        copied = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else new.get(value, value) for value in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=_node_name(stack, str(node.name), index),
        )
        for old, made in zip(node.outputs, copied.outputs, strict=True):
            made.name, made.shape, made.type = f"{old.name}.{index}", _shape(old), old.type
            new[old] = made
        graph.append(copied)
    for name, result in block.results.items():
        if name:
            new[result].name = stack.renamed(str(result.name), index)
            graph.outputs.append(new[result])
    return new[block.results[""]]


def _node_name(stack: Stack, name: str, index: int) -> str:
    """The name of a copied node: that of another block's module where its module is one of the block's."""
    module, slash, rest = name.partition("/")
    if not slash or stack.owner(f"{module}.") is None:
        return f"{name}.{index}"
    return f"{stack.renamed(f'{module}.', index).removesuffix('.')}/{rest}"


def _shape(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else value.shape.copy()
