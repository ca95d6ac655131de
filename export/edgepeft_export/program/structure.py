"""The structure of a segment: equal for segments that one graph can compute."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.graph.constants import initializer_tensor, is_frozen
from edgepeft_export.graph.nested.bodies import reads
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.program.segments import Segment
from edgepeft_runtime.errors import BadSetting

Bound = Callable[[ir.Value], bool]
"""Whether a frozen tensor becomes an input of the graph."""

WEIGHTS = ("constant", "input")
"""``constant``: frozen weights are part of whole graphs, in which onnxruntime optimizes them. ``input``: graphs of
segments read them as inputs, so that equal blocks share a graph and no copy of a weight is made."""

BINDABLE = 8
"""Elements. Smaller tensors are numbers of the algorithm and not weights."""

_WEIGHTS = frozenset({ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8})


_READS_CONSTANTS = frozenset({"MatMulNBits", "FakeQuantize"})
"""Operators whose gradient needs the content of their weights."""


def as_inputs(value: ir.Value) -> bool:
    """Bind weights by the call: vectors and matrices of floats and bytes.

    Those of grouped convolutions stay constants. They are small, and ONNX Runtime needs them for its blocked layout,
    without which a depthwise convolution takes 2 to 5 times as long.
    """
    tensor = initializer_tensor(value)
    is_weight = tensor.dtype in _WEIGHTS and tensor.size >= BINDABLE and len(tensor.shape) > 0
    reads_content = any(use.node.op_type in _READS_CONSTANTS for use in value.uses())
    return is_weight and not reads_content and not _is_of_groups(value)


def _is_of_groups(value: ir.Value) -> bool:
    """Whether a grouped convolution's weight or bias is computed from a tensor and other constants."""
    return any(_multiplies_groups(use.node, use.idx) for use in value.uses())


def _multiplies_groups(node: ir.Node, index: int) -> bool:
    if node.op_type == "Conv":
        return index > 0 and int(node.attributes.get_int("group", 1)) > 1
    made_of_constants = all(_is_constant(read) for read in node.inputs if read is not None)
    return made_of_constants and any(map(_is_of_groups, node.outputs))


def _is_constant(value: ir.Value) -> bool:
    """Whether a value depends on frozen tensors alone. What is near is looked at first: most values read an input."""
    found = [value]
    for each in found:
        node = each.producer()
        if node is None and not is_frozen(each):
            return False
        found += [read for read in (() if node is None else node.inputs) if read is not None and read not in found]
    return True


def checked_weights(weights: str) -> str:
    """The way to read weights; raises ``BadSetting`` for an unknown one."""
    if weights not in WEIGHTS:
        raise BadSetting("weights", weights, " or ".join(WEIGHTS))
    return weights


@dataclass(frozen=True)
class Structure:
    """A segment in a canonical order, which does not depend on names and on the order of independent nodes.

    Attributes:
        digest: equal for segments of equal structure: operators, attributes, topology, contents of what is not bound,
            shapes and dtypes of the rest.
        nodes: the nodes.
        inputs, outputs: the values of the segment.
        weights: the frozen tensors that are bound by the call.
        parameters: the parameters that it reads.
        frozen: the other frozen tensors.
    """

    digest: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    weights: tuple[ir.Value, ...]
    parameters: tuple[ir.Value, ...]
    frozen: tuple[ir.Value, ...]


def structure_of(segment: Segment, bound: Bound) -> Structure:
    """The structure of a segment."""
    walk = _Walk(segment, bound)
    for output in segment.outputs:
        walk.visit(output)
    described = [*walk.text, *(f"out {walk.names[output]}" for output in segment.outputs)]
    return Structure(
        hashlib.sha256("\n".join(described).encode()).hexdigest(),
        tuple(walk.nodes),
        tuple(walk.found["in"]),
        segment.outputs,
        tuple(walk.found["weight"]),
        tuple(walk.found["parameter"]),
        tuple(walk.found["constant"]),
    )


class _Walk:
    """Visits values depth first, inputs before readers, and describes each by what it is computed from."""

    def __init__(self, segment: Segment, bound: Bound) -> None:
        self.text: list[str] = []
        self.nodes: list[ir.Node] = []
        self.names: dict[ir.Value, str] = {}
        self.found: dict[str, list[ir.Value]] = {kind: [] for kind in ("in", "weight", "parameter", "constant")}
        self._own, self._inputs, self._bound = set(segment.nodes), set(segment.inputs), bound
        self._dims: dict[str, str] = {}

    def visit(self, value: ir.Value) -> None:
        """Describe a value and everything before it."""
        stack = [value]
        while stack:
            value = stack[-1]
            producer = value.producer() if value not in self._inputs else None
            waiting = [read for read in reads(producer) if read not in self.names] if producer is not None else []
            if value in self.names or not waiting:
                stack.pop()
                self._describe(value, producer)
            else:
                stack.append(waiting[0])

    def _describe(self, value: ir.Value, producer: ir.Node | None) -> None:
        if value in self.names:
            return
        if producer is None:
            self._leaf(value)
            return
        number = len(self.nodes)
        self.nodes.append(producer)
        self.text.append(f"{number} {self._node(producer, self.names)}")
        self.names.update((output, f"{number}.{index}") for index, output in enumerate(producer.outputs))

    def _leaf(self, value: ir.Value) -> None:
        kind = self._kind(value)
        self.names[value] = f"{kind}.{len(self.found[kind])}"
        self.found[kind].append(value)
        content = hashlib.sha256(initializer_tensor(value).tobytes()).hexdigest() if kind == "constant" else ""
        self.text.append(f"{self.names[value]} {value.dtype} {self._shape(value)} {content}")

    def _kind(self, value: ir.Value) -> str:
        if value in self._inputs:
            return "in"
        if value.is_graph_input():
            return "parameter"
        return "weight" if self._bound(value) else "constant"

    def _shape(self, value: ir.Value) -> list[str] | None:
        """Sizes, and numbers for the names of the others."""
        if value.shape is None:
            return None
        return [str(dim) if isinstance(dim, int) else self._dim(str(dim)) for dim in dims_of(value)]

    def _dim(self, name: str) -> str:
        return self._dims.setdefault(name, f"d{len(self._dims)}")

    def _node(self, node: ir.Node, names: Mapping[ir.Value, str]) -> str:
        inputs = ["" if value is None else names[value] for value in node.inputs]
        attributes = [f"{name}={self._attribute(node.attributes[name], names)}" for name in sorted(node.attributes)]
        return f"{node.domain}.{node.op_type}({','.join(inputs)}){attributes}{len(node.outputs)}"

    def _attribute(self, attribute: ir.Attr, names: Mapping[ir.Value, str]) -> str:
        if attribute.type == ir.AttributeType.GRAPH:
            return self._body(attribute.as_graph(), names)
        if attribute.type == ir.AttributeType.GRAPHS:
            return "".join(self._body(graph, names) for graph in attribute.as_graphs())
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            return f"{tensor.dtype}{list(tensor.shape.numpy())}{hashlib.sha256(tensor.tobytes()).hexdigest()}"
        return repr(attribute.value)

    def _body(self, graph: ir.Graph, outer: Mapping[ir.Value, str]) -> str:
        """A subgraph, in its own order. It may read values of the graph around it."""
        names = dict(outer)
        names.update((value, f"b{len(names)}") for value in graph.inputs)
        lines = []
        for value in graph.initializers.values():
            tensor = initializer_tensor(value)
            names[value] = f"c{len(names)}"
            lines.append(f"{names[value]} {tensor.dtype} {tensor.shape} {hashlib.sha256(tensor.tobytes()).hexdigest()}")
        for node in graph:
            lines.append(self._node(node, names))
            for output in node.outputs:
                names[output] = f"b{len(names)}"
        return f"{{{';'.join(lines)}->{[names[value] for value in graph.outputs]}}}"
