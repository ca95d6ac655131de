"""Attention for a few heads at a time, so that the scores of all heads never exist together.

Pattern: ``MatMul(Softmax(f(MatMul(q, k))), v)`` on tensors [batch, heads, ., .], where f treats heads alike: a
factor, a soft cap, masks without heads, a bias of each head.
Algebra: heads do not depend on one another, so a loop over groups of them computes the same. No scores are kept: the
backward pass computes those of a group again (as Dao et al., "FlashAttention", NeurIPS 2022, do for blocks).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from edgepeft_export.autodiff import dependents
from edgepeft_export.autodiff.registry import full_name
from edgepeft_export.chunks.sizes import NORMAL, ChunkSizes
from edgepeft_export.graph.custom_ops import DOMAIN, MAP
from edgepeft_export.graph.edit import input_named, remove_node, replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import only_reader, operand, operands
from edgepeft_export.graph.nested.bodies import infer_body
from edgepeft_export.graph.shapes import Dim, at_most, dims_of, infer_shapes, rank

HEADS = 1
"""The axis of the heads."""

LONG = 512
"""Positions. Models whose inputs are never longer keep the scores of all heads, which costs no second computation."""

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Tanh", "Where"})


@dataclass
class _Head:
    """The operators of one attention.

    Attributes:
        nodes: in the order of the graph.
        sliced: tensors with heads that they read.
        shared: tensors without heads that they read.
    """

    heads: int
    nodes: list[ir.Node] = field(default_factory=list)
    sliced: list[ir.Value] = field(default_factory=list)
    shared: list[ir.Value] = field(default_factory=list)


def attend_by_head(model: ir.Model, parameters: Collection[str], sizes: ChunkSizes = NORMAL) -> int:
    """Let attentions run for a few heads at a time, in place. Short inputs run all heads at once.

    Args:
        model: forward graph, perhaps with a loss.
        parameters: names of the inputs whose gradient will be needed. Masks may not depend on them.
        sizes: of chunks.

    Returns:
        The number of attentions that do.
    """
    graph = model.graph
    depends = dependents(graph, [input_named(graph, name) for name in parameters])
    heads = _Heads(Emitter(graph), sizes.scores)
    count = 0
    for softmax in [node for node in graph if node.op_type == "Softmax" and not node.domain]:
        found = _attention(softmax)
        if found is not None and not any(value in depends for value in found.shared):
            heads.divide(found, depends)
            count += 1
    if count:
        graph.sort()  # the new nodes were appended at the end
        infer_shapes(model)
    return count


def _attention(softmax: ir.Node) -> _Head | None:
    """The operators from the product of queries and keys to that of probabilities and values."""
    probabilities = softmax.outputs[0]
    product = only_reader(probabilities, "MatMul")
    if product is None or operand(product) is not probabilities or probabilities.shape is None:
        return None
    heads = dims_of(probabilities)[HEADS] if rank(probabilities) == 4 else None
    last = int(softmax.attributes.get_int("axis", -1)) % 4 == 3
    values = operand(product, 1)
    if not isinstance(heads, int) or heads < 2 or not last or not _has_heads(values, heads):
        return None
    found = _Head(heads, sliced=[values])
    if not _scores(operand(softmax), found):
        return None
    found.nodes += [softmax, product]
    return found


def _scores(value: ir.Value, found: _Head) -> bool:
    """Add the operators from a matmul to ``value``. Returns whether there is a matmul before it."""
    node = value.producer()
    if node is None or len(value.uses()) != 1 or value.is_graph_output() or not _has_heads(value, found.heads):
        return False
    if node.op_type == "MatMul" and all(_has_heads(read, found.heads) for read in operands(node)):
        found.sliced += operands(node)
        found.nodes.append(node)
        return True
    if full_name(node) not in ELEMENTWISE or any(read is None or read.shape is None for read in node.inputs):
        return False
    before = len(found.nodes), len(found.sliced), len(found.shared)
    inner = [read for read in operands(node) if _scores(read, found)]
    for read in operands(node):
        if read in inner:
            continue
        if _has_heads(read, found.heads):
            found.sliced.append(read)
        elif _is_without_heads(read):
            found.shared.append(read)
        else:
            inner.clear()
            break
    if not inner:  # a bias, which is read as it is
        nodes, sliced, shared = before
        del found.nodes[nodes:], found.sliced[sliced:], found.shared[shared:]
        return False
    found.nodes.append(node)
    return True


def _has_heads(value: ir.Value, heads: int) -> bool:
    return value.shape is not None and rank(value) == 4 and dims_of(value)[HEADS] == heads


def _is_without_heads(value: ir.Value) -> bool:
    """Whether a tensor is broadcast over heads."""
    dims = dims_of(value)
    return len(dims) < 3 or dims[-3] == 1


class _Heads:
    """Replaces attentions by loops. Those of equal shape share the number of heads in a group."""

    def __init__(self, emit: Emitter, at_once: int) -> None:
        self._emit, self._at_once = emit, at_once
        self._sizes: dict[tuple[Dim, ...], ir.Value] = {}

    def divide(self, found: _Head, depends: Collection[ir.Value]) -> None:
        """Run an attention for a group of heads at a time."""
        product = found.nodes[-1]
        self._emit.scope = product.name or "attention"
        sliced = list(dict.fromkeys(found.sliced))
        # The keys of the lowest block may depend on no parameter, but it shares its graphs with the other blocks.
        # The gradient of a bias would be as large as the scores, so it exists only where the bias trains.
        factors = {value for node in found.nodes if node.op_type == "MatMul" for value in operands(node)}
        wanted = [index for index, value in enumerate(sliced) if value in depends or value in factors]
        inputs = [self._group_size(found), *sliced]
        result = self._emit.op(
            MAP,
            *inputs,
            domain=DOMAIN,
            body=_body(found, sliced, self._emit.graph),
            axis=HEADS,
            sliced=len(sliced),
            exact=1,
            wanted=wanted,
        )
        replace_value(product.outputs[0], result)
        for node in reversed(found.nodes):
            remove_node(node)

    def _group_size(self, found: _Head) -> ir.Value:
        """The most heads, of those that divide all, with few enough scores together, or one."""
        emit, (queries, keys) = self._emit, operands(found.nodes[0])
        key = found.heads, dims_of(queries)[2], dims_of(keys)[3]
        if key not in self._sizes or None in key:
            scores = emit.op("Max", emit.op("Mul", emit.dim(queries, 2), emit.dim(keys, 3)), emit.ints(1))
            fitting = emit.op("Div", emit.ints(self._at_once), scores)
            divisors = emit.ints(*(size for size in range(1, found.heads + 1) if found.heads % size == 0))
            fits = emit.op("LessOrEqual", divisors, fitting)
            sizes = emit.op("Where", fits, divisors, emit.ints(1))
            self._sizes[key] = emit.op("ReduceMax", sizes, emit.ints(0), keepdims=1)
        return self._sizes[key]


def _body(found: _Head, sliced: Sequence[ir.Value], graph: ir.Graph) -> ir.Graph:
    """The same operators on tensors with the heads of a group."""
    body = ir.Graph([], [], nodes=[], name="heads", opset_imports=dict(graph.opset_imports))
    inner: dict[ir.Value | None, ir.Value | None] = {value: value for value in found.shared} | {None: None}
    group = at_most(1, f"group of {found.nodes[-1].name}")
    for index, value in enumerate(sliced):
        dims = dims_of(value)
        twin = ir.Value(name=f"heads.{index}", type=value.type, shape=ir.Shape([dims[0], group, *dims[2:]]))
        body.inputs.append(twin)
        inner[value] = twin
    for node in found.nodes:
        copy = ir.Node("", node.op_type, [inner[value] for value in node.inputs], num_outputs=1, name=node.name)
        body.append(copy)
        inner[node.outputs[0]], copy.outputs[0].type = copy.outputs[0], node.outputs[0].type
    body.outputs.extend(value for value in [inner[found.nodes[-1].outputs[0]]] if value is not None)
    infer_body(body, graph)
    return body
