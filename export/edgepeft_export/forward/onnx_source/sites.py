"""Where LoRA can be attached on a graph: products with a constant matrix, and what users may call them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from edgepeft_export.forward.onnx_source.quantized.reading import only_reader, other_input, root
from edgepeft_export.graph.composites import CONTRIB, DOMAIN, FAKE_QUANTIZE, INT8_MATMUL
from edgepeft_export.graph.shapes import static_dims

_ENDINGS = re.compile(
    r"((_DQ)?_Q[48]\w*|_quantized|_quant|_qweight|_[Tt]ransposed|\.T|[._](weight|kernel|W)|[./](MatMul|Gemm|Conv))$"
)
_ANONYMOUS = re.compile(
    r"(onnx::.*|(val|t|transpose|tensor|initializer|constant|const|weight|_val)?_?[\d_.]*)$", re.IGNORECASE
)
_HEAD_WAY = frozenset({"Add", "Identity", "Softmax", "LogSoftmax", "Sigmoid", "Reshape", "Squeeze", FAKE_QUANTIZE})
_BIAS_INPUT = {"Gemm": 2, "Conv": 2, INT8_MATMUL: 4, "MatMulNBits": 5}
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata in which torch's exporter keeps the names of the modules a node comes from."""


@dataclass(frozen=True)
class Site:
    """A product with a constant matrix.

    Attributes:
        node: the product, or convolution of one group.
        weight: the initializer its matrix is, or is unpacked from.
        inputs, outputs: sizes of the matrix: what it takes and what it gives (channels of a convolution).
        kernel: sizes of a convolution's kernel along its axes.
        result: what a branch is added to: the product, with its bias where that is added next.
        bias: the initializer that is added to it, where there is one.
        names: what it may be called; adapters are named by the first.
    """

    node: ir.Node
    weight: ir.Value
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    result: ir.Value
    bias: ir.Value | None
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """What its adapters are named by."""
        return self.names[0]

    @property
    def is_packed(self) -> bool:
        """Whether the matrix is kept as integers."""
        return self.node.inputs[1] is not self.weight or self.weight.dtype != ir.DataType.FLOAT

    @property
    def narrows(self) -> bool:
        """Whether it gives less than it takes, as heads do, save those over a vocabulary."""
        return self.outputs < self.inputs

    def fits(self, pattern: str) -> bool:
        """Whether a pattern, or the end of a dotted name, means this product."""
        return any(fnmatchcase(name, pattern) or name.endswith(f".{pattern}") for name in self.names)


def find_sites(graph: ir.Graph) -> list[Site]:
    """Every product that can carry an adapter, in graph order."""
    return [site for node in graph if (site := _site(node)) is not None]


def find_last(graph: ir.Graph, sites: Sequence[Site]) -> Site | None:
    """The product that gives the model's first output: a task's head, or a language model's; neither is square."""
    by_node = {site.node: site for site in sites}
    value: ir.Value | None = graph.outputs[0]
    while value is not None and (node := value.producer()) is not None:
        if node in by_node:
            return by_node[node] if by_node[node].inputs != by_node[node].outputs else None
        if node.op_type not in _HEAD_WAY:
            return None
        value = next((read for read in node.inputs if read is not None and root(read) is None), None)
    return None


def _site(node: ir.Node) -> Site | None:
    if len(node.inputs) < 2 or root(node.inputs[0]) is not None:
        return None
    weight = root(node.inputs[1])
    sizes = _sizes(node) if weight is not None else None
    if weight is None or sizes is None or node.outputs[0].dtype not in (ir.DataType.FLOAT, None):
        return None
    result, bias = _with_bias(node)
    return Site(node, weight, sizes[0], sizes[1], tuple(sizes[2:]), result, bias, tuple(_names(node, weight, bias)))


def _sizes(node: ir.Node) -> list[int] | None:
    """Inputs, outputs and the kernel's sizes of a product's matrix."""
    if (node.domain, node.op_type) == (CONTRIB, "MatMulNBits"):
        return [node.attributes["K"].as_int(), node.attributes["N"].as_int()]
    dims = static_dims(node.inputs[1]) if node.inputs[1] is not None else None
    if dims is None:
        return None
    if (node.domain, node.op_type) == (DOMAIN, INT8_MATMUL):
        return dims[::-1] if node.attributes.get_int("transB", 0) else dims
    if node.domain:
        return None
    if node.op_type == "Conv":
        return [dims[1], dims[0], *dims[2:]] if node.attributes.get_int("group", 1) == 1 else None
    if node.op_type == "MatMul" and len(dims) == 2:
        return dims
    if node.op_type == "Gemm" and not node.attributes.get_int("transA", 0):
        return dims[::-1] if node.attributes.get_int("transB", 0) else dims
    return None


def _with_bias(node: ir.Node) -> tuple[ir.Value, ir.Value | None]:
    """The product, with the constant that its node or its only reader adds to it, and that constant."""
    at, result = _BIAS_INPUT.get(node.op_type), node.outputs[0]
    if at is not None and len(node.inputs) > at and node.inputs[at] is not None:
        return result, root(node.inputs[at])
    rounded = only_reader(result, FAKE_QUANTIZE)
    product = result if rounded is None else rounded.outputs[0]
    add = only_reader(product, "Add")
    bias = root(other_input(add, product)) if add is not None else None
    return (add.outputs[0] if add is not None and bias is not None and rounded is None else result), bias


def _names(node: ir.Node, weight: ir.Value, bias: ir.Value | None) -> Iterator[str]:
    """What a product may be called, the best first: by its weight, its bias, the module it comes from, its node."""
    stems = [_stem(str(weight.name)), _stem(str(bias.name), "bias") if bias is not None else "", _scope(node)]
    found = [stem for stem in stems if not _ANONYMOUS.fullmatch(stem)]
    node_name = (node.name or "").strip("/")
    found += [_stem(node_name).replace("/", "."), node_name, str(weight.name)]
    yield from dict.fromkeys(name for name in found if name)


def _stem(name: str, ending: str | None = None) -> str:
    """A tensor's name without what exporters and quantizers append."""
    while (short := _ENDINGS.sub("", name)) and short != name:
        name = short
    return name if ending is None else re.sub(rf"[._]{ending}$", "", name)


def _scope(node: ir.Node) -> str:
    scopes = [part.strip(" '\"") for part in node.metadata_props.get(_SCOPES, "").strip("[]").split(",")]
    modules = [part for part in scopes[:-1] if part]  # the last is the operator's
    return modules[-1] if modules else ""
