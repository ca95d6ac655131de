"""Weights that a pair changes itself, as ``W + scale · B A``: of recurrent operators and transposed convolutions.

Their operators read W at every step, or spread it over an image, so a branch beside them would run them twice. The sum
is computed once a step, and once and for all when an update is merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.forward.onnx_source.names import fits, names_of
from edgepeft_export.graph.constants import source_initializer
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import present
from edgepeft_export.graph.shapes import static_dims

_RECURRENT = {"LSTM": ("W", "R"), "GRU": ("W", "R"), "RNN": ("W", "R")}
"""The inputs from the second on that are weights, [directions, gates · hidden, in]."""


@dataclass(frozen=True)
class WeightSite:
    """A weight of a node that can carry pairs: one for each direction of a recurrent operator.

    Attributes:
        node: the operator.
        index: the input that is the weight.
        names: the names it is matched by. Pairs are named by the first.
        shapes: of A and B of one pair, in the layout ``torch``.
        count: number of pairs.
    """

    node: ir.Node
    index: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    count: int

    @property
    def name(self) -> str:
        """The name of its pairs."""
        return self.names[0]

    @property
    def weight(self) -> ir.Value:
        """The initializer, or what is dequantized from one."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value

    def fits(self, pattern: str) -> bool:
        """Whether a pattern, or the end of a dotted name, means this weight."""
        return fits(self.names, pattern)

    def add(self, emit: Emitter, pairs: list[tuple[ir.Value, ir.Value]], scale: float) -> None:
        """Let every reader of the weight read the sum, whose nodes are appended."""
        weight = self.weight
        changes = [self._change(emit, a, b) for a, b in pairs]
        change = changes[0] if len(changes) == 1 else emit.op("Concat", *changes, axis=0)
        if scale != 1.0:
            change = emit.op("Mul", change, emit.constant(np.array(scale, np.float32)))
        uses = list(weight.uses())
        total = emit.op("Add", weight, change)
        total.name, total.shape, total.type = f"{weight.name}.adapted", weight.shape, weight.type
        for use in uses:
            use.node.replace_input_with(use.idx, total)

    def _change(self, emit: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
        if self.node.op_type in _RECURRENT:
            return emit.op("Unsqueeze", emit.op("MatMul", b, a), emit.ints(0))
        rank, inputs, *kernel = self.shapes[0]
        outputs = self.shapes[1][0]
        flat = emit.op("MatMul", _shaped(emit, b, outputs, rank), _shaped(emit, a, rank, -1))
        whole = _shaped(emit, flat, outputs, inputs, *kernel)
        return emit.op("Transpose", whole, perm=[1, 0, *range(2, len(self.shapes[0]))])


def _shaped(emit: Emitter, value: ir.Value, *sizes: int) -> ir.Value:
    return emit.op("Reshape", value, emit.ints(*sizes))


def find_weight_sites(nodes: Iterable[ir.Node], rank: int) -> list[WeightSite]:
    """Every such weight, once, in the order of the nodes.

    Args:
        nodes: of a model.
        rank: of the pairs.
    """
    found: dict[ir.Value, WeightSite] = {}
    for node in nodes:
        for site in _sites(node, rank):
            found.setdefault(site.weight, site)
    return list(found.values())


def _sites(node: ir.Node, rank: int) -> Iterator[WeightSite]:
    if node.domain:
        return
    if node.op_type in _RECURRENT:
        for index, part in enumerate(_RECURRENT[node.op_type], start=1):
            dims = _dims(node, index)
            if dims is not None:
                directions, gates, inputs = dims
                names = tuple(dict.fromkeys((*names_of(node, _weight(node, index), None), f"{node.name}.{part}")))
                yield WeightSite(node, index, names, ((rank, inputs), (gates, rank)), directions)
    elif node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) == 1:
        dims = _dims(node, 1)
        if dims is not None:
            inputs, outputs, *kernel = dims
            shapes = (rank, inputs, *kernel), (outputs, rank, *[1] * len(kernel))
            yield WeightSite(node, 1, tuple(names_of(node, _weight(node, 1), None)), shapes, 1)


def _weight(node: ir.Node, index: int) -> ir.Value:
    """The initializer that a weight is, or is dequantized from."""
    value = source_initializer(present(node, index))
    assert value is not None
    return value


def _dims(node: ir.Node, index: int) -> list[int] | None:
    value = present(node, index)
    if value is None or source_initializer(value) is None or value.dtype != ir.DataType.FLOAT:
        return None
    return static_dims(value)


def first_values(site: WeightSite, draw: np.random.Generator) -> Mapping[str, NDArray[np.float32]]:
    """A, uniform within 1 / sqrt(inputs) as in ``peft``, and B, 0; by ``a`` and ``b``."""
    shape, other = site.shapes
    limit = 1.0 / np.sqrt(int(np.prod(shape[1:])))
    return {"a": draw.uniform(-limit, limit, shape).astype(np.float32), "b": np.zeros(other, np.float32)}
