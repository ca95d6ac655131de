"""The tensors of a file by what they are for: biases, scales and shifts of norms, the head."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeGuard

import onnx_ir as ir

from edgepeft_export.errors import UnknownInitializer
from edgepeft_export.forward.onnx_source.sites import find_last, find_sites
from edgepeft_export.graph.constants import source_initializer
from edgepeft_export.graph.match import present, producer_of
from edgepeft_export.graph.shapes import static_dims

_BIASES = {
    "Conv": 2,
    "ConvTranspose": 2,
    "Gemm": 2,
    "LSTM": 3,
    "GRU": 3,
    "RNN": 3,
    "BatchNormalization": 2,
    "InstanceNormalization": 2,
    "GroupNormalization": 2,
    "LayerNormalization": 2,
}
"""The input of an operator that is its bias."""


def of_kinds(model: ir.Model, kinds: Collection[str]) -> dict[str, list[ir.Value]]:
    """The float initializers of each kind: ``bias``, ``norm``, ``head``.

    Raises:
        UnknownInitializer: there is none of a kind. Biases and norms may train without a head.
    """
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    finders: dict[str, Callable[[], Iterator[ir.Value | None]]] = {
        "bias": lambda: _biases(nodes),
        "norm": lambda: _norms(nodes),
        "head": lambda: _head(model.graph, nodes),
    }
    found = {kind: list(dict.fromkeys(value for value in finders[kind]() if _trains(value))) for kind in kinds}
    missing = [kind for kind, values in found.items() if not values and (kind != "head" or len(found) == 1)]
    if missing:
        names = {
            "bias": "layer with a bias",
            "norm": "norm with a scale",
            "head": "linear layer before its first output",
        }
        raise UnknownInitializer(
            f"The file has no {names[missing[0]]} of float32.",
            context=None,
            hint="choose lora, or name the initializers that train; exporters fold norms into convolutions.",
        )
    return found


def _trains(value: ir.Value | None) -> TypeGuard[ir.Value]:
    return value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT


def _biases(nodes: list[ir.Node]) -> Iterator[ir.Value | None]:
    for node in nodes:
        if node.op_type in _BIASES and not node.domain:
            yield source_initializer(present(node, _BIASES[node.op_type]))
    for site in find_sites(nodes):
        yield site.bias
    for node in nodes:
        yield from _written_out(node)[1:]


def _norms(nodes: list[ir.Node]) -> Iterator[ir.Value | None]:
    for node in nodes:
        if "Normalization" in node.op_type:
            yield from (present(node, 1), present(node, 2))
        yield from _written_out(node)


def _written_out(node: ir.Node) -> list[ir.Value]:
    """The scale and the shift of a norm that older operator sets express by others: ``x / sqrt(...) · scale + shift``.

    The variance is a mean, which distinguishes a norm from the division of attention's scores.
    """
    if node.op_type != "Mul" or node.domain:
        return []
    for at in (0, 1):
        scale, divided = node.inputs[at], producer_of(node.inputs[1 - at], "Div")
        root = None if divided is None else producer_of(divided.inputs[1], "Sqrt")
        if scale is None or root is None or not _is_vector(scale) or not _of_a_mean(root):
            continue
        uses = [use.node for use in node.outputs[0].uses()]
        shifts = [value for use in uses if use.op_type == "Add" for value in use.inputs if value is not None]
        return [scale, *(value for value in shifts if _is_vector(value) and value is not node.outputs[0])]
    return []


def _of_a_mean(root: ir.Node) -> bool:
    added = producer_of(root.inputs[0], "Add")
    return added is not None and any(producer_of(value, "ReduceMean") is not None for value in added.inputs)


def _is_vector(value: ir.Value) -> bool:
    dims = static_dims(value) if value.is_initializer() else None
    return dims is not None and len(dims) == 1 and dims[0] > 1


def _head(graph: ir.Graph, nodes: list[ir.Node]) -> Iterator[ir.Value | None]:
    last = find_last(graph, find_sites(nodes))
    if last is not None and not last.linear.is_quantized:
        yield from (last.linear.weight, last.bias)
