"""How many bytes of activations are alive at once, for any sizes of the symbolic dimensions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgepeft_export.graph.shapes import infer_shapes

Polynomial = Mapping[str, int]
"""Bytes by the product of dimensions they grow with: ``{"batch*sequence": 1536, "": 64}``."""

ALIASES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that onnxruntime runs in place: the bytes stay where they are."""


def activation_peaks(model: ir.Model) -> list[Polynomial]:
    """The sums of what is alive at the moments at which most can be.

    Nodes run in the order of the graph; a tensor is alive from the node that makes it to the last one that reads it.
    Weights and what is fed are not counted.

    Args:
        model: stays as it is.

    Returns:
        A polynomial for each moment that no other one exceeds in every coefficient.
    """
    model = model.clone()
    infer_shapes(model)
    order = list(model.graph)
    home = _homes(order)
    last = _last_use(model.graph, order, home)
    symbols = _symbols(model.graph)
    alive: Counter[str] = Counter()
    peaks: list[Counter[str]] = []
    ends: dict[int, list[ir.Value]] = {}
    for at, node in enumerate(order):
        for value in node.outputs:
            if home[value] is value:
                alive.update(_size(value, symbols))
                ends.setdefault(last.get(value, at), []).append(value)
        peaks.append(Counter({name: count for name, count in alive.items() if count > 0}))
        for value in ends.pop(at, ()):
            alive.subtract(_size(value, symbols))
    return _undominated(peaks)


def _homes(order: Sequence[ir.Node]) -> dict[ir.Value, ir.Value]:
    """The tensor whose bytes each tensor lies in."""
    home: dict[ir.Value, ir.Value] = {}
    for node in order:
        for output in node.outputs:
            source = node.inputs[0] if node.op_type in ALIASES and node.inputs else None
            home[output] = home.get(source, output) if source is not None else output
    return home


def _last_use(graph: ir.Graph, order: Sequence[ir.Node], home: Mapping[ir.Value, ir.Value]) -> dict[ir.Value, int]:
    last: dict[ir.Value, int] = {}
    for at, node in enumerate(order):
        for value in node.inputs:
            if value is not None and value in home:
                last[home[value]] = at
    for value in graph.outputs:
        if value in home:
            last[home[value]] = len(order)
    return last


def _symbols(graph: ir.Graph) -> list[str]:
    """Names of the symbolic dimensions of what is fed."""
    dims = {str(dim.value) for value in graph.inputs for dim in value.shape or () if not isinstance(dim, int)}
    return sorted(dims - {"None"})


def _size(value: ir.Value, symbols: Sequence[str]) -> Counter[str]:
    """Bytes of a tensor; one of which nothing is known counts as nothing.

    A dimension without a name of its own is as large as the symbols in its formula, else as those the tensor lacks.
    """
    if value.shape is None or value.dtype is None:
        return Counter()
    count, names, unknown = max(1, value.dtype.bitwidth // 8), [], False
    for dim in value.shape:
        if isinstance(dim, int):
            count *= dim
            continue
        found = [symbol for symbol in symbols if symbol in re.findall(r"\w+", str(dim.value))]
        names += found
        unknown |= not found
    names += [symbol for symbol in symbols if unknown and symbol not in names]
    return Counter({"*".join(sorted(names)): count})


def _undominated(peaks: Sequence[Counter[str]]) -> list[Polynomial]:
    """The polynomials that may be the largest for some sizes."""
    kept: list[Counter[str]] = []
    for peak in peaks:
        if any(_covers(other, peak) for other in kept):
            continue
        kept = [other for other in kept if not _covers(peak, other)]
        kept.append(peak)
    return [dict(peak) for peak in kept]


def _covers(large: Counter[str], small: Counter[str]) -> bool:
    return all(count <= large[name] for name, count in small.items())
