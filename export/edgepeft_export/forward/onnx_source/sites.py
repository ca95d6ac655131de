"""Linear layers of a graph to which LoRA can be attached, and the names by which users may choose them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.forward.onnx_source.names import fits, names_of
from edgepeft_export.graph.constants import source_initializer
from edgepeft_export.graph.custom_ops import FAKE_QUANTIZE
from edgepeft_export.graph.linear import LinearSite
from edgepeft_export.graph.match import added_vector, only_reader

_HEAD_WAY = frozenset(
    {"Add", "Identity", "Softmax", "LogSoftmax", "Sigmoid", "Reshape", "Squeeze", "Pad", FAKE_QUANTIZE}
)


@dataclass(frozen=True)
class AdapterSite:
    """A linear layer that can carry an adapter.

    Attributes:
        linear: the layer.
        result: the layer's output, with its bias where that is added next. A branch is added to it.
        bias: the initializer that is added to the output, if any.
        names: the names it is matched by. Adapters are named by the first.
    """

    linear: LinearSite
    result: ir.Value
    bias: ir.Value | None
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its adapters."""
        return self.names[0]

    @property
    def narrows(self) -> bool:
        """Whether it has fewer outputs than inputs, like heads other than those over a vocabulary."""
        return self.linear.outputs < self.linear.inputs

    def fits(self, pattern: str) -> bool:
        """Whether a pattern, or the end of a dotted name, means this linear layer."""
        return fits(self.names, pattern)


def find_sites(nodes: Iterable[ir.Node]) -> list[AdapterSite]:
    """Every linear layer that can carry an adapter, in the order of the nodes."""
    return [site for node in nodes if (site := _site(node)) is not None]


def find_last(graph: ir.Graph, sites: Sequence[AdapterSite]) -> AdapterSite | None:
    """The linear layer that computes the model's first output: a task's or a language model's head, neither square."""
    by_node = {site.linear.node: site for site in sites}
    value: ir.Value | None = next(iter(graph.outputs), None)
    while value is not None and (node := value.producer()) is not None:
        if node in by_node:
            return by_node[node] if by_node[node].linear.inputs != by_node[node].linear.outputs else None
        if node.op_type not in _HEAD_WAY:
            return None
        value = next((read for read in node.inputs if read is not None and source_initializer(read) is None), None)
    return None


def _site(node: ir.Node) -> AdapterSite | None:
    linear = LinearSite.of(node)
    if linear is None or linear.groups > 1:
        return None
    result, bias = _with_bias(linear)
    return AdapterSite(linear, result, bias, tuple(names_of(node, linear.weight, bias)))


def _with_bias(linear: LinearSite) -> tuple[ir.Value, ir.Value | None]:
    """The layer's output, with the constant that its node or its only reader adds to it, and that constant."""
    result = linear.node.outputs[0]
    if linear.bias is not None:
        return result, source_initializer(linear.bias)
    rounded = only_reader(result, FAKE_QUANTIZE)
    bias, total = added_vector(result if rounded is None else rounded.outputs[0], linear.outputs) or (None, result)
    bias = source_initializer(bias)
    return (total if bias is not None and rounded is None else result), bias
