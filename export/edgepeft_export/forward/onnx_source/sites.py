"""Linear layers of a graph to which LoRA can be attached, and the names by which users may choose them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from edgepeft_export.graph.constants import source_initializer
from edgepeft_export.graph.custom_ops import FAKE_QUANTIZE
from edgepeft_export.graph.linear import LinearSite
from edgepeft_export.graph.match import added_vector, only_reader

_ENDINGS = re.compile(
    r"((_DQ)?_Q[48]\w*|_quantized|_quant|_qweight|_[Tt]ransposed|\.T|[._](weight|kernel|W)|[./](MatMul|Gemm|Conv))$"
)
_ANONYMOUS = re.compile(
    r"(onnx::.*|(val|t|transpose|tensor|initializer|constant|const|weight|_val)?_?[\d_.]*)$", re.IGNORECASE
)
_HEAD_WAY = frozenset({"Add", "Identity", "Softmax", "LogSoftmax", "Sigmoid", "Reshape", "Squeeze", FAKE_QUANTIZE})
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata in which torch's exporter keeps the names of the modules a node comes from."""


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
        return any(fnmatchcase(name, pattern) or name.endswith(f".{pattern}") for name in self.names)


def find_sites(graph: ir.Graph) -> list[AdapterSite]:
    """Every linear layer that can carry an adapter, in graph order."""
    return [site for node in graph if (site := _site(node)) is not None]


def find_last(graph: ir.Graph, sites: Sequence[AdapterSite]) -> AdapterSite | None:
    """The linear layer that computes the model's first output: a task's or a language model's head, neither square."""
    by_node = {site.linear.node: site for site in sites}
    value: ir.Value | None = graph.outputs[0]
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
    return AdapterSite(linear, result, bias, tuple(_names(node, linear.weight, bias)))


def _with_bias(linear: LinearSite) -> tuple[ir.Value, ir.Value | None]:
    """The layer's output, with the constant that its node or its only reader adds to it, and that constant."""
    result = linear.node.outputs[0]
    if linear.bias is not None:
        return result, source_initializer(linear.bias)
    rounded = only_reader(result, FAKE_QUANTIZE)
    bias, total = added_vector(result if rounded is None else rounded.outputs[0], linear.outputs) or (None, result)
    bias = source_initializer(bias)
    return (total if bias is not None and rounded is None else result), bias


def _names(node: ir.Node, weight: ir.Value, bias: ir.Value | None) -> Iterator[str]:
    """The names of a layer, the best first: by its weight, its bias, the module it comes from, its node."""
    stems = [_stem(str(weight.name)), _stem(str(bias.name), "bias") if bias is not None else "", _scope(node)]
    names = [stem for stem in stems if not _ANONYMOUS.fullmatch(stem)]
    node_name = (node.name or "").strip("/")
    names += [_stem(node_name).replace("/", "."), node_name, str(weight.name)]
    yield from dict.fromkeys(name for name in names if name)


def _stem(name: str, ending: str | None = None) -> str:
    """A tensor's name without the suffixes of exporters and quantizers."""
    while (short := _ENDINGS.sub("", name)) and short != name:
        name = short
    return name if ending is None else re.sub(rf"[._]{ending}$", "", name)


def _scope(node: ir.Node) -> str:
    scopes = [part.strip(" '\"") for part in node.metadata_props.get(_SCOPES, "").strip("[]").split(",")]
    modules = [part for part in scopes[:-1] if part]  # the last is the operator's
    return modules[-1] if modules else ""
