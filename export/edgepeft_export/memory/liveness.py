"""The bytes of activations that are alive at once, for any sizes of the symbolic dimensions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from edgepeft_export.graph.nested.bodies import graphs_of, reads
from edgepeft_export.graph.shapes import infer_shapes, largest_size

Polynomial = Mapping[str, int]
"""Bytes by the product of dimensions they grow with: ``{"batch*sequence": 1536, "": 64}``."""

ALIASES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that onnxruntime runs in place, without copying."""


def activation_peaks(model: ir.Model, symbols: Collection[str] | None = None) -> list[Polynomial]:
    """The sizes of all live activations at the moments that may be the peak.

    Nodes run in the order of the graph. A tensor is alive from the node that computes it to the last one that reads it.
    Weights and inputs are not counted. A loop has the tensors of one iteration besides its own inputs and outputs.

    Args:
        model: is not changed.
        symbols: names of the symbolic dimensions of the batch; by default those of the inputs.

    Returns:
        A polynomial for each moment that no other one exceeds in every coefficient.
    """
    model = model.clone()
    infer_shapes(model)
    return undominated(_peaks(model.graph, _symbols(model.graph) if symbols is None else sorted(symbols)))


def _peaks(graph: ir.Graph, symbols: Sequence[str]) -> list[Counter[str]]:
    order = list(graph)
    buffer = _buffers(order)
    last = _last_use(graph, order, buffer)
    alive: Counter[str] = Counter()
    peaks: list[Counter[str]] = []
    ends: dict[int, list[ir.Value]] = {}
    for step, node in enumerate(order):
        for value in node.outputs:
            if buffer[value] is value:
                alive.update(_size_of_output(value, symbols))
                ends.setdefault(last.get(value, step), []).append(value)
        now = Counter({name: count for name, count in alive.items() if count > 0})
        peaks += [now, *(now + inside for inside in _in_an_iteration(node, symbols))]
        for value in ends.pop(step, ()):
            alive.subtract(_size_of_output(value, symbols))
    return peaks


def _size_of_output(value: ir.Value, symbols: Sequence[str]) -> Counter[str]:
    """Bytes of a tensor. The chunks that a loop returns are together as large as what was divided into them."""
    node = value.producer()
    return size_of(value, symbols, in_chunks=node is not None and node.op_type == "Scan")


def _in_an_iteration(node: ir.Node, symbols: Sequence[str]) -> list[Counter[str]]:
    """The peaks of the graphs of a loop or a branch."""
    return [peak for graph in graphs_of(node) for peak in _peaks(graph, symbols)]


def _buffers(order: Sequence[ir.Node]) -> dict[ir.Value, ir.Value]:
    """The tensor whose buffer each tensor uses."""
    buffer: dict[ir.Value, ir.Value] = {}
    for node in order:
        for output in node.outputs:
            source = node.inputs[0] if node.op_type in ALIASES and node.inputs else None
            buffer[output] = buffer.get(source, output) if source is not None else output
    return buffer


def _last_use(graph: ir.Graph, order: Sequence[ir.Node], buffer: Mapping[ir.Value, ir.Value]) -> dict[ir.Value, int]:
    last: dict[ir.Value, int] = {}
    for step, node in enumerate(order):
        for value in reads(node):
            if value in buffer:
                last[buffer[value]] = step
    for value in graph.outputs:
        if value in buffer:
            last[buffer[value]] = len(order)
    return last


def _symbols(graph: ir.Graph) -> list[str]:
    """Names of the symbolic dimensions of the inputs."""
    dims = {str(dim.value) for value in graph.inputs for dim in value.shape or () if not isinstance(dim, int)}
    return sorted(dims - {"None"})


def size_of(value: ir.Value, symbols: Sequence[str], *, in_chunks: bool = False) -> Counter[str]:
    """Bytes of a tensor, by products of symbols; 0 where its shape or dtype is unknown.

    A dimension with a largest size counts as that, or as 1 ``in_chunks`` whose number is unknown. One without a name of
    its own counts as the symbols in its formula, else as those that the tensor lacks.
    """
    if value.shape is None or value.dtype is None:
        return Counter()
    count, bound, names, unknown = max(1, value.dtype.bitwidth // 8), 1, list[str](), False
    for dim in value.shape:
        largest = None if isinstance(dim, int) else largest_size(dim.value)
        if isinstance(dim, int) or largest is not None:
            count *= dim if isinstance(dim, int) else 1
            bound *= largest or 1
            continue
        formula = [symbol for symbol in symbols if symbol in re.findall(r"\w+", str(dim))]
        names += formula
        unknown |= not formula
    names += [symbol for symbol in symbols if unknown and symbol not in names]
    return Counter({"*".join(sorted(names)): count if in_chunks and unknown else count * bound})


def undominated(peaks: Iterable[Counter[str]]) -> list[Polynomial]:
    """The polynomials that may be the largest for some sizes."""
    largest: list[Counter[str]] = []
    for peak in peaks:
        if any(_covers(other, peak) for other in largest):
            continue
        largest = [other for other in largest if not _covers(peak, other)]
        largest.append(peak)
    return [dict(peak) for peak in largest]


def _covers(large: Counter[str], small: Counter[str]) -> bool:
    return all(count <= large[name] for name, count in small.items())
