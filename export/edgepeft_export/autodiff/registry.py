"""The table of gradient rules. Each ONNX operator has one entry, in one of two lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_runtime.errors import EdgepeftError

Upstream = Sequence[ir.Value | None]
"""The gradient of the loss with respect to each output of a node; ``None`` where the loss does not depend on it."""


class Flat(Enum):
    """The gradient of a float input that the outputs do not depend on, or only by jumps."""

    ZERO = 0


ZERO = Flat.ZERO

Gradients = Sequence[ir.Value | Flat | None]
"""The gradient with respect to each input. May be shorter than the inputs.

``None`` means that the rule knows no gradient, which is an error where a float input needs one.
"""

RuleFunction = Callable[[ir.Node, Upstream, Emitter], Gradients]

FirstOutputRule = Callable[[ir.Node, ir.Value, Emitter], Gradients]
"""A rule for operators of which only the first output may be used; it gets that output's gradient."""


@dataclass(frozen=True)
class Rule:
    """How a gradient crosses one operator.

    Attributes:
        function: emits the gradient nodes.
        broadcasts: whether the gradients have the shape of the output, to which the operator broadcasts its inputs. The
            walk then sums each back to its input's shape. Otherwise each gradient already has that shape.
        outputs: number of outputs, from the first, whose gradients the rule uses; ``None`` for all.
        covers: for which nodes there is the rule; the others have to be written as other operators.
    """

    function: RuleFunction
    broadcasts: bool
    outputs: int | None
    covers: Callable[[ir.Node], bool] = lambda _: True


class NoGradientForCase(EdgepeftError, code="no-gradient-for-case"):
    """An operator that has a gradient rule, used in a way which the rule does not cover."""

    def __init__(self, node: ir.Node, reason: str, way_out: str) -> None:
        super().__init__(
            f"Cannot build the train step: op {node.op_type} (node {node.name or '?'}) has no gradient here: {reason}.",
            context=None,
            hint=f"{way_out}, or freeze every parameter before it.",
        )


RULES: dict[str, Rule] = {}
"""By the operator's full name: with its domain, where that is not ONNX's own."""

NO_GRADIENT: dict[str, str] = {}
"""Operators whose outputs do not depend smoothly on any input, each with the reason."""


def has_rule(node: ir.Node) -> bool:
    """Whether gradients can cross a node as it is."""
    entry = RULES.get(full_name(node))
    return entry is not None and entry.covers(node)


def full_name(node: ir.Node) -> str:
    """The operator's name, with its domain where that is not ONNX's own."""
    return qualified(node.op_type, node.domain)


def qualified(op_type: str, domain: str) -> str:
    return f"{domain}.{op_type}" if domain else op_type


def rule(*op_types: str, broadcasts: bool = False, domain: str = "") -> Callable[[FirstOutputRule], FirstOutputRule]:
    """Register a function as the gradient rule of operators of a domain, for the gradient of their first output.

    A rule emits a gradient for *every* input that can have one. The walk uses the ones it needs and sweeps the rest.
    Inputs of integer type get ``None``, float inputs without influence ``ZERO``. The walk refuses a node of which
    another output is used, or whose rule returns ``None`` where a gradient is needed.
    """

    def register(function: FirstOutputRule) -> FirstOutputRule:
        def from_first(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
            return function(node, only(upstream), emit)

        _register(Rule(from_first, broadcasts, outputs=1), op_types, domain)
        return function

    return register


def rule_of_outputs(
    op_type: str, outputs: int | None = None, domain: str = "", covers: Callable[[ir.Node], bool] = lambda _: True
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as the gradient rule of an operator of which several outputs may be used."""

    def register(function: RuleFunction) -> RuleFunction:
        _register(Rule(function, False, outputs, covers), [op_type], domain)
        return function

    return register


def only(upstream: Upstream) -> ir.Value:
    """The gradient of the one output that the loss depends on."""
    (dy,) = [gradient for gradient in upstream if gradient is not None]
    return dy


def _register(entry: Rule, op_types: Sequence[str], domain: str) -> None:
    for op_type in op_types:
        _refuse_duplicate(qualified(op_type, domain))
        RULES[qualified(op_type, domain)] = entry


def no_gradient(reason: str, *op_types: str) -> None:
    """Register operators that a gradient never crosses."""
    for op_type in op_types:
        _refuse_duplicate(op_type)
        NO_GRADIENT[op_type] = reason


def _refuse_duplicate(op_type: str) -> None:
    assert op_type not in RULES and op_type not in NO_GRADIENT, f"{op_type} is registered twice"
