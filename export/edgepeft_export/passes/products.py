"""Ensures that products of two activations, as in attention, read and write them without a pass of their own.

Patterns, with a transposition of the last two axes and a constant number c, in a train graph:

* ``MatMul(Transpose(a), b)``, ``MatMul(a, Transpose(b))``, ``MatMul(Mul(a, c), b)``, ``MatMul(a, Mul(b, c))``;
* ``Transpose(MatMul(a, b))`` and ``Mul(MatMul(a, b), c)``, where nothing else reads the product.

Each becomes a ``FusedMatMul``. Algebra: ``(a b)ᵀ = bᵀ aᵀ`` and ``(c a) b = c (a b)``.

ONNX Runtime fuses some of them itself, but first merges a transposition of keys or values with the one that separates
their heads. Then keys and values exist in two layouts, one for the forward and one for the backward pass, and the
gradient of the keys is computed transposed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgepeft_export.graph.constants import constant_factor, known
from edgepeft_export.graph.edit import remove_node
from edgepeft_export.graph.match import operand, operands, producer_of
from edgepeft_export.graph.shapes import Dim, broadcast_dim, dims_of, rank
from edgepeft_export.opset.domains import CONTRIB

Replaced = dict[ir.Value, ir.Value]
"""New values by old ones."""


@dataclass(frozen=True)
class _Factor:
    """An operand: ``value`` times ``factor``, and with its last two axes swapped if ``transposed``."""

    value: ir.Value
    transposed: bool = False
    factor: float = 1.0

    @property
    def is_activation(self) -> bool:
        """Whether it is a float32 tensor, not a matrix or a constant."""
        is_float32 = self.value.dtype == ir.DataType.FLOAT
        return is_float32 and self.value.shape is not None and rank(self.value) > 2 and known(self.value) is None


def fuse_products(graph: ir.Graph, forward: Collection[ir.Node], kept: Collection[ir.Value]) -> Replaced:
    """Fuse products with transpositions and factors, in place. Operands that nothing reads any more stay.

    Args:
        graph: forward and backward.
        forward: nodes whose results must go on to exist, as other code may know them.
        kept: results of other nodes that are needed, besides the outputs of the graph.

    Returns:
        The new value for each of ``kept`` that was replaced.
    """
    _sweep(graph, forward, kept)
    replaced: Replaced = {}
    for node in [node for node in graph if node.op_type == "MatMul" and not node.domain]:
        left, right = (_peeled(_Factor(value)) for value in operands(node))
        if left.is_activation and right.is_activation:
            _fuse(node, left, right, forward, kept, replaced)
    return replaced


def _sweep(graph: ir.Graph, forward: Collection[ir.Node], kept: Collection[ir.Value]) -> None:
    """Remove the nodes of gradients that were not needed: they would be readers."""
    for node in reversed(list(graph)):
        if node not in forward and not any(_is_needed(output, kept) for output in node.outputs):
            remove_node(node)


def _is_needed(value: ir.Value, kept: Collection[ir.Value]) -> bool:
    return bool(value.uses()) or value in kept or value.is_graph_output()


def _fuse(
    node: ir.Node,
    left: _Factor,
    right: _Factor,
    forward: Collection[ir.Node],
    kept: Collection[ir.Value],
    replaced: Replaced,
) -> None:
    product = result = node.outputs[0]
    factor, readers = left.factor * right.factor, list[ir.Node]()
    while node not in forward and (reader := _only_reader(result, kept)) is not None and reader not in forward:
        if _swaps_last_two(reader):
            left, right = (replace(side, transposed=not side.transposed) for side in (right, left))
        elif (scaled := constant_factor(reader.outputs[0])) is not None and scaled[1] is result:
            factor *= scaled[0]
        else:
            break
        result = reader.outputs[0]
        readers.append(reader)
    if not readers and [left.value, right.value] == operands(node):
        return
    node.op_type, node.domain = "FusedMatMul", CONTRIB
    for index, side in enumerate((left, right)):
        node.replace_input_with(index, side.value)
        node.attributes[f"trans{'AB'[index]}"] = ir.AttrInt64(f"trans{'AB'[index]}", int(side.transposed))
    node.attributes["alpha"] = ir.AttrFloat32("alpha", factor)
    assert node.graph is not None
    node.graph.opset_imports.setdefault(CONTRIB, 1)
    product.shape, product.dtype = result.shape or _shape(left, right), ir.DataType.FLOAT
    if readers:
        result.replace_all_uses_with(product, replace_graph_outputs=True)
        replaced[result] = product
        for reader in reversed(readers):
            remove_node(reader)


def _peeled(factor: _Factor) -> _Factor:
    """The operand before transpositions of its last two axes, and before constant factors."""
    node = factor.value.producer()
    if node is not None and _swaps_last_two(node):
        return _peeled(replace(factor, value=operand(node), transposed=not factor.transposed))
    scaled = constant_factor(factor.value)
    if scaled is not None and scaled[1].shape is not None and rank(scaled[1]) > 1:
        return _peeled(replace(factor, value=scaled[1], factor=factor.factor * scaled[0]))
    return factor


def _only_reader(value: ir.Value, kept: Collection[ir.Value]) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and value not in kept and not value.is_graph_output() else None


def _swaps_last_two(node: ir.Node) -> bool:
    source = producer_of(node.outputs[0], "Transpose")
    if source is None or "perm" not in node.attributes:
        return False
    perm = list(node.attributes["perm"].as_ints())
    last = len(perm) - 1
    return last > 1 and perm == [*range(last - 1), last, last - 1]


def _shape(left: _Factor, right: _Factor) -> ir.Shape:
    a, b = dims_of(left.value), dims_of(right.value)
    batch: list[Dim] = []
    for axis in range(1, max(len(a), len(b)) - 1):
        sizes = [dims[-2 - axis] if axis + 2 <= len(dims) else 1 for dims in (a, b)]
        batch.insert(0, broadcast_dim(*sizes))
    return ir.Shape([*batch, a[-1 if left.transposed else -2], b[-2 if right.transposed else -1]])
