"""Reverse-mode differentiation of an ONNX graph: emits the backward nodes after the forward ones.

The walk visits only nodes between a target and the loss. It does two things once for all rules: it adds the gradients
of a value with several readers, and sums the gradients of a broadcast input back to its shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.autodiff import rules  # noqa: F401  (registers the rules)
from edgepeft_export.autodiff.checks import check_emitted, check_node, check_opset
from edgepeft_export.autodiff.expansion import expand, unknown
from edgepeft_export.autodiff.misjudged import forget_misjudged_sizes
from edgepeft_export.autodiff.registry import (
    NO_GRADIENT,
    RULES,
    ZERO,
    Gradients,
    NoGradientForCase,
    Rule,
    Upstream,
    full_name,
    has_rule,
)
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.passes import fuse_products
from edgepeft_runtime.errors import EdgepeftError


@dataclass(frozen=True)
class MissingRule:
    """A node between the loss and a target that no gradient can cross.

    Attributes:
        op_type: the operator.
        node: the node's name.
        target: name of the nearest target before the node.
    """

    op_type: str
    node: str
    target: str


class NoGradientRule(EdgepeftError, code="no-gradient-rule"):
    """An operator without a gradient rule lies between the loss and something that should train."""

    def __init__(self, missing_rules: Sequence[MissingRule]) -> None:
        first = missing_rules[0]
        lines = [
            f"Op {rule.op_type} (node {rule.node}) lies between the loss and parameter {rule.target}."
            for rule in missing_rules[:8]
        ]
        lines += [f"… and {len(missing_rules) - 8} more"] if len(missing_rules) > 8 else []
        super().__init__(
            "Cannot build the train step: "
            + (
                f"op {first.op_type} has no gradient rule."
                if len(missing_rules) == 1
                else f"{len(missing_rules)} nodes have no gradient rule."
            ),
            context="\n".join(lines),
            hint=f"freeze {first.target}, express {first.op_type} by other operators, "
            "or add a rule in export/edgepeft_export/autodiff/rules/.",
        )


def differentiate(graph: ir.Graph, loss: ir.Value, targets: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Append to ``graph`` the nodes that compute the gradient of ``loss`` with respect to ``targets``.

    Args:
        graph: as in ``differentiate_from``.
        loss: a float scalar of the graph.
        targets: float values of the graph.

    Returns:
        As ``differentiate_from``.
    """
    return differentiate_from(graph, {loss: Emitter(graph).scalar(1.0, like=loss)}, targets)


def differentiate_from(
    graph: ir.Graph, upstream: Mapping[ir.Value, ir.Value], targets: Sequence[ir.Value]
) -> dict[ir.Value, ir.Value]:
    """Append to ``graph`` the nodes that compute the gradient of ``sum(y · dy)`` over pairs of values and gradients.

    Args:
        graph: in topological order, of opset 13 or later, with ranks and dtypes of its values known.
        upstream: for values of the graph, the gradients of a loss with respect to them, of the same shape and dtype.
        targets: float values of the graph: inputs, initializers or results of nodes.

    Returns:
        For each target that the loss depends on, its gradient, of the same shape and dtype. Targets that the loss does
            not depend on are absent.

    Raises:
        NoGradientRule: operators between the loss and a target have no rule. The error names each such node.
        NoGradientForCase: an operator there has a rule that does not cover how it is used.
        UnsupportedOpset: the graph's operator set lacks operators that the gradient needs.
    """
    check_opset(graph)
    expanded = _expand(graph, upstream, targets)
    missing = _missing_rules(graph, [expanded.get(value, value) for value in upstream], targets)
    if missing:
        raise NoGradientRule(missing)
    forget_misjudged_sizes(graph)
    forward = list(graph)
    depends = dependents(forward, targets)
    emit = Emitter(graph, scope="loss/grad")
    parts = {expanded.get(value, value): [gradient] for value, gradient in upstream.items()}
    for node in reversed(forward):
        arriving = [_total(parts, output, emit, node) for output in node.outputs]
        if all(gradient is None for gradient in arriving) or not any(i in depends for i in node.inputs):
            continue
        if full_name(node) in NO_GRADIENT:
            continue  # its output is a target itself
        emit.scope = _scope(node)
        rule = RULES[full_name(node)]
        check_node(node, arriving, rule)
        for value, fitted in _through(node, rule, arriving, depends, emit):
            parts.setdefault(value, []).append(fitted)
    emit.scope = "parameters/grad"
    gradients = {target: emit.add(parts[target]) for target in targets if target in parts}
    check_emitted(graph, set(forward))
    replaced = fuse_products(graph, set(forward), set(gradients.values()))
    return {target: replaced.get(gradient, gradient) for target, gradient in gradients.items()}


def _through(
    node: ir.Node, rule: Rule, upstream: Upstream, depends: set[ir.Value], emit: Emitter
) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield each input of a node that needs a gradient, with its gradient in its own shape."""
    gradients = rule.function(node, upstream, emit)
    for index, value in enumerate(node.inputs):
        if value is None or value not in depends:
            continue
        gradient = gradients[index] if index < len(gradients) else None
        if gradient is ZERO:
            continue
        if gradient is None:
            raise NoGradientForCase(node, f"none is known for its input {index}", f"make {value.name} a constant")
        fitted = emit.sum_to(gradient, dims_of(node.outputs[0]), value) if rule.broadcasts else gradient
        if fitted.shape is None and value.shape is not None:
            fitted.shape = value.shape.copy()
        yield value, fitted


def missing_rules(graph: ir.Graph, loss: ir.Value, targets: Sequence[ir.Value]) -> list[MissingRule]:
    """Every node between ``loss`` and ``targets`` that has no gradient rule, in graph order.

    Emits no gradient. Nodes that other operators can express are replaced by these, in place.
    """
    return _missing_rules(graph, [_expand(graph, [loss], targets).get(loss, loss)], targets)


def _expand(graph: ir.Graph, ends: Iterable[ir.Value], targets: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Replace nodes without a rule by others, in place, until there is a rule for each or none can be replaced.

    Returns:
        The new value for each of ``ends`` that was replaced.
    """
    current = {value: value for value in ends}
    while replaced := expand(graph, [node for node, _ in _without_rule(graph, current.values(), targets)]):
        for end, value in current.items():
            while value in replaced:
                value = replaced[value]
            current[end] = value
    return {end: value for end, value in current.items() if value is not end}


def _missing_rules(graph: ir.Graph, ends: Iterable[ir.Value], targets: Sequence[ir.Value]) -> list[MissingRule]:
    found = _without_rule(graph, ends, targets)
    opset = graph.opset_imports.get("", 1)
    return [
        MissingRule(unknown(node, opset), node.name or "?", _nearest_target(active, targets)) for node, active in found
    ]


def _without_rule(
    graph: ir.Graph, ends: Iterable[ir.Value], targets: Sequence[ir.Value]
) -> list[tuple[ir.Node, list[ir.Value]]]:
    """The nodes on a way from targets to ends that have no rule, with the values that reach them, in graph order."""
    nodes = list(graph)
    depends = dependents(nodes, targets)
    reached = set(ends)
    found: list[tuple[ir.Node, list[ir.Value]]] = []
    for node in reversed(nodes):
        active = [value for value in _reads(node) if value in depends]
        if not active or not any(output in reached for output in node.outputs):
            continue
        if full_name(node) in NO_GRADIENT:
            continue
        reached.update(active)
        if not has_rule(node):
            found.append((node, active))
    return found[::-1]


def dependents(nodes: Iterable[ir.Node], targets: Sequence[ir.Value]) -> set[ir.Value]:
    """The targets, and every float value computed from one of them by way of operators that a gradient may cross."""
    depends = set(targets)
    for node in nodes:
        if full_name(node) in NO_GRADIENT:
            continue
        if any(value in depends for value in _reads(node)):
            depends.update(filter(_may_have_gradient, node.outputs))
    return depends


def leading_to(nodes: Sequence[ir.Node], end: ir.Value) -> set[ir.Value]:
    """The values of which ``end`` is one of the ``dependents``."""
    leading = {end}
    for node in reversed(nodes):
        if full_name(node) not in NO_GRADIENT and any(map(_may_have_gradient, leading.intersection(node.outputs))):
            leading.update(_reads(node))
    return leading


def _may_have_gradient(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _reads(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node, and every value that its subgraphs (If, Loop, Scan) read."""
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inside in attribute.as_graph():
                values += _reads(inside)
    return values


def _total(parts: dict[ir.Value, list[ir.Value]], value: ir.Value, emit: Emitter, node: ir.Node) -> ir.Value | None:
    """The whole gradient of ``value``. All its readers come later in the graph and have been visited."""
    if value not in parts:
        return None
    emit.scope = _scope(node)
    total = emit.add(parts[value])
    if total.shape is None and value.shape is not None:
        total.shape = value.shape.copy()
    parts[value] = [total]
    return total


def _nearest_target(values: Sequence[ir.Value], targets: Sequence[ir.Value]) -> str:
    """Name of the first target met when walking from ``values`` towards the inputs, breadth first."""
    wanted, seen, queue = set(targets), set(values), list(values)
    for value in queue:
        if value in wanted:
            return value.name or "?"
        producer = value.producer()
        for read in _reads(producer) if producer is not None else ():
            if read not in seen:
                seen.add(read)
                queue.append(read)
    return "?"


def _scope(node: ir.Node) -> str:
    return f"{node.name or node.op_type}/grad"


__all__ = [
    "Gradients",
    "MissingRule",
    "NoGradientRule",
    "dependents",
    "differentiate",
    "differentiate_from",
    "leading_to",
    "missing_rules",
]
