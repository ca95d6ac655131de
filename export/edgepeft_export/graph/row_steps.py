"""Ensures that the step of a rounded row is applied once, after the last of several products of integers.

Pattern, in a gradient: ``m = Mul(product, step)`` with a step per row, of which every use is a chain of ``Mul`` that
ends in the rounding of its rows (``edgepeft_export.graph.row_rounding``): gradients through activations and gates.
Algebra: rounding the rows of ``step · v`` gives the integers of ``v`` and steps that are ``step`` times as large. So
``product`` replaces ``m``, and the steps of the next roundings are multiplied by ``step``: one number per row.

Where the chain begins with factors of columns, as the next matrix's scales, the product itself multiplies by them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.graph.constants import known, known_number
from edgepeft_export.graph.edit import remove_node
from edgepeft_export.graph.match import only_reader, operand, other_input, producer_of
from edgepeft_export.graph.row_rounding import RoundedRows
from edgepeft_export.graph.shapes import dims_of

COLUMN_SCALES = 3
"""The input of a ``MatMulIntegerToFloat`` that has one factor per column."""


@dataclass(frozen=True)
class Step:
    """``node`` multiplies the product of the integers of ``rows`` by their steps."""

    node: ir.Node
    rows: RoundedRows


def defer_steps(steps: Sequence[Step]) -> None:
    """Apply steps after later products, in place.

    Args:
        steps: in the order of the graph, all with a constant zero point.
    """
    later: dict[ir.Value, list[ir.Value]] = {}
    for step in steps:
        own = later.setdefault(step.rows.x, [])
        own += [] if step.rows.step in own else [step.rows.step]
    for step in steps:
        while (folded := _fold_columns(step.node)) is not None:
            if folded[0] in later:
                later[folded[1]] = later.pop(folded[0])
    for step in steps:
        chain = _Chain(later)
        if chain.follow(step.node.outputs[0]):
            product, factor = step.node.inputs
            assert product is not None and factor is not None
            step.node.outputs[0].replace_all_uses_with(product)
            remove_node(step.node)
            for rounded in chain.ends:
                for later_step in later[rounded]:
                    _multiply(later_step, factor)


class _Chain:
    """Follows a tensor through products to roundings.

    Args:
        later: the steps of roundings, by what they round.

    Attributes:
        ends: what is rounded.
    """

    def __init__(self, later: Mapping[ir.Value, Collection[ir.Value]]) -> None:
        self._later = later
        self._seen: set[ir.Node] = set()
        self.ends: dict[ir.Value, None] = {}

    def follow(self, value: ir.Value) -> bool:
        """Whether all that reads a value multiplies it, and rounds the result by row."""
        if value.is_graph_output() or value.shape is None:
            return False
        if value in self._later:
            self.ends[value] = None
            return all(_belongs_to_rounding(use.node, self._later[value]) for use in value.uses())
        return bool(value.uses()) and all(self._through(use.node, value) for use in value.uses())

    def _through(self, node: ir.Node, value: ir.Value) -> bool:
        is_new = node not in self._seen  # reached twice, the factor would be squared
        self._seen.add(node)
        return is_new and _multiplies(node, value) and self.follow(node.outputs[0])


def _multiplies(node: ir.Node, value: ir.Value) -> bool:
    result = node.outputs[0]
    if node.op_type != "Mul" or node.domain or value.shape is None or result.shape is None:
        return False
    return other_input(node, value) is not value and dims_of(result) == dims_of(value)


def _belongs_to_rounding(node: ir.Node, steps: Collection[ir.Value]) -> bool:
    """Whether a node is part of a rounding of rows with one of these steps."""
    if node.op_type == "Reshape":
        return all(_belongs_to_rounding(use.node, steps) for use in node.outputs[0].uses())
    if node.op_type == "QuantizeLinear":
        flat = producer_of(operand(node, 1), "Reshape")
        return flat is not None and operand(flat) in steps
    return node.op_type in ("ReduceMax", "ReduceMin", "Shape")


def _multiply(step: ir.Value, factor: ir.Value) -> None:
    """Let the products of a rounding be multiplied by its step times another one."""
    producer, products = step.producer(), [use for use in step.uses() if use.node.op_type == "Mul"]
    assert producer is not None
    node = ir.node("Mul", [step, factor], name=f"{producer.name}/deferred")
    node.outputs[0].shape, node.outputs[0].type = step.shape, step.type
    producer.append(node)
    for use in products:
        use.node.replace_input_with(use.idx, node.outputs[0])


def _fold_columns(scaled: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Let a product multiply its columns by constant factors that alone are applied to it later.

    Returns:
        The value with these factors, which is no more, and the one that replaces it.
    """
    product, value = operand(scaled).producer(), scaled.outputs[0]
    assert product is not None
    if known_number(operand(product, COLUMN_SCALES)) != 1.0:
        return None
    while (node := only_reader(value, "Mul")) is not None and _multiplies(node, value):
        factors, result = other_input(node, value), node.outputs[0]
        column = known(factors)
        if column is not None and factors is not None and column.shape == (dims_of(value)[-1],):
            product.replace_input_with(COLUMN_SCALES, factors)
            result.replace_all_uses_with(value)
            remove_node(node)
            return result, value
        value = result
    return None
