"""Check what gradient rules assume: the operator set, the node they differentiate and the nodes they emit."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
import onnx_ir as ir

from edgepeft_export.autodiff.registry import NoGradientForCase, Rule, Upstream
from edgepeft_runtime.errors import EdgepeftError

OLDEST_OPSET = 13
"""Before it, Softmax, BatchNormalization, Clip, Pad and others had other semantics or another form."""

NEWEST_OPSET = 21
"""The operator set that the rules were written for. A later one may add attributes and inputs to an operator."""


class UnsupportedOpset(EdgepeftError, code="unsupported-opset"):
    """A graph of an operator set in which its gradient cannot be written."""

    def __init__(self, opset: int, reason: str, way_out: str) -> None:
        super().__init__(
            f"Cannot build the train step of a graph of ONNX opset {opset}.",
            context=reason,
            hint=f"convert the model to opset {way_out} (onnx.version_converter).",
        )


def check_opset(graph: ir.Graph) -> None:
    """Refuse operator sets in which operators have other defaults and other inputs."""
    opset = graph.opset_imports.setdefault("", NEWEST_OPSET)
    if opset < OLDEST_OPSET:
        raise UnsupportedOpset(opset, f"gradients are known from opset {OLDEST_OPSET} on", "20")


def check_node(node: ir.Node, upstream: Upstream, rule: Rule) -> None:
    """Refuse a node with a used output, an attribute or an input that its rule does not know."""
    beyond = [] if rule.outputs is None else list(upstream[rule.outputs :])
    if any(gradient is not None for gradient in beyond):
        raise NoGradientForCase(node, "an output other than its first is used", "compute that by other operators")
    unknown = sorted(_unknown(node))
    if unknown:
        raise NoGradientForCase(
            node, f"{', '.join(unknown)} came after opset {NEWEST_OPSET}", "leave that at its default"
        )


def _unknown(node: ir.Node) -> Iterator[str]:
    """Attributes and inputs that the operator does not have in the newest operator set that rules know."""
    if node.domain or not onnx.defs.has(node.op_type, max_inclusive_version=NEWEST_OPSET):
        return
    schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=NEWEST_OPSET)
    opset = node.graph.opset_imports.get("", NEWEST_OPSET) if node.graph is not None else NEWEST_OPSET
    if opset <= NEWEST_OPSET:
        return
    yield from (f"its attribute {name}" for name in node.attributes if name not in schema.attributes)
    if len(node.inputs) > schema.max_input:
        yield f"its input {schema.max_input}"


def check_emitted(graph: ir.Graph, forward: Collection[ir.Node]) -> None:
    """Refuse a graph whose operator set lacks operators that were added to it."""
    opset = graph.opset_imports.get("", NEWEST_OPSET)
    if opset >= 18:
        return
    for node in graph:
        if node not in forward and not node.domain and not _exists(node, opset):
            raise UnsupportedOpset(opset, f"its gradient needs {node.op_type} as later operator sets have it", "20")


def _exists(node: ir.Node, opset: int) -> bool:
    if not onnx.defs.has(node.op_type, max_inclusive_version=opset):
        return False
    schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset)
    return len(node.inputs) <= schema.max_input and all(name in schema.attributes for name in node.attributes)
