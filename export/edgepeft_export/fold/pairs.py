"""Ensures that a LoRA branch beside a frozen product costs nothing: ``X W + s X A B`` becomes ``X (W + s A B)``.

Read on the graph, not from names: two products with trained matrices in a row, scaled, added to a third product of the
same input. Linear layers come as ``MatMul`` or ``Gemm``, convolutions as ``Conv`` followed by a ``Conv`` with a 1x1
kernel. What looks different stays as it is, which is right too, only slower.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.fold.matmuls import Product, base_product, flattens, pointwise, product, same_window, unscaled

Matrix = NDArray[np.float64]

_MASKED = 0.04
"""Share of zeros from which on a weight is masked; a mask has 5 % or more of a whole tensor."""


@dataclass(frozen=True)
class _Pair:
    """A LoRA branch and what it stands beside.

    Attributes:
        base: the frozen product.
        base_output: what the branch is added to: the product, perhaps with a bias, perhaps reshaped.
        total: the sum.
        delta: the branch as one matrix in the layout of ``base.matrix``.
    """

    base: Product
    base_output: ir.Value
    total: ir.Value
    delta: Matrix


def fold_lora(
    model: ir.Model,
    trained: Collection[ir.Value],
    read: Callable[[ir.Value], Product | None] = product,
    put: Callable[[ir.Graph, Product, Matrix], None] | None = None,
    spare_masks: bool = True,
) -> int:
    """Fold every LoRA branch into the weight beside it, in place.

    Args:
        model: an inference graph whose trained tensors are initializers.
        trained: these initializers; only branches whose two matrices are among them are folded.
        read: which products are folded into.
        put: gives such a product another factor; ``None``: by replacing its float weight.
        spare_masks: leave weights with many zeros alone.

    Returns:
        The number of branches folded.
    """
    folded = 0
    for node in list(model.graph):
        pair = _pair(node, trained, read)
        if pair is not None and not (spare_masks and _is_masked(pair.base)):
            (put or _put)(model.graph, pair.base, pair.base.matrix() + pair.delta)
            _take_place(pair.base_output, pair.total)
            folded += 1
    common.RemoveUnusedNodesPass()(model)
    return folded


@dataclass(frozen=True)
class _Branch:
    """``s (X A) B``: the input X, the first product (of convolutions it says where they look), and ``s A B``."""

    source: ir.Value
    first: Product
    delta: Matrix


def _pair(node: ir.Node, trained: Collection[ir.Value], read: Callable[[ir.Value], Product | None]) -> _Pair | None:
    if node.op_type != "Add":
        return None
    left, right = node.inputs
    for base_output, branch_output in ((left, right), (right, left)):
        if base_output is None or branch_output is None:
            return None
        base, branch = base_product(base_output, read), _branch(branch_output, trained)
        if base is None or branch is None or base.weight in trained:
            continue
        if _beside(base, branch) and base.matrix().shape == branch.delta.shape:
            return _Pair(base, base_output, node.outputs[0], branch.delta)
    return None


def _is_masked(base: Product) -> bool:
    """Whether a mask holds weights at zero, which a dense branch would fill.

    Read from the zeros: names change on the way to a graph, exact zeros do not, and dense weights have next to none.
    """
    return bool(np.mean(base.matrix() == 0) >= _MASKED)


def _branch(value: ir.Value, trained: Collection[ir.Value]) -> _Branch | None:
    """The branch that gives ``value``, whose constant factor may lie anywhere on it; ``None`` where it is no branch."""
    after, value = unscaled(value)
    second = product(value)
    between, value = unscaled(second.source) if second is not None else (1.0, value)
    first = product(value)
    if first is None or second is None or first.has_bias or second.has_bias:
        return None
    if first.weight not in trained or second.weight not in trained or first.is_conv != second.is_conv:
        return None
    if second.is_conv and not pointwise(second.node):
        return None
    before, source = unscaled(first.source)
    a, b = first.matrix(), second.matrix()
    both = np.einsum("or,ri...->oi...", b.reshape(b.shape[:2]), a) if first.is_conv else a @ b
    return _Branch(source, first, after * between * before * both)


def _beside(base: Product, branch: _Branch) -> bool:
    """Whether a product sees the branch's input in the branch's way."""
    if base.is_conv or branch.first.is_conv:
        return base.source is branch.source and same_window(base.node, branch.first.node)
    return base.source is branch.source or flattens(base.source, branch.source)


def new_initializer(graph: ir.Graph, stem: str, array: NDArray[Any]) -> ir.Value:
    """An initializer named ``stem``, or ``stem.1``, ``stem.2``, ... where that name is taken."""
    name, number = stem, 0
    while name in graph.initializers:
        number += 1
        name = f"{stem}.{number}"
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _put(graph: ir.Graph, base: Product, matrix: Matrix) -> None:
    weight, node = base.weight, base.node
    assert weight.const_value is not None
    array = base.stored(matrix).astype(weight.const_value.numpy().dtype)
    if len(weight.uses()) > 1:  # tied weights: the others keep the old value
        node.replace_input_with(1, new_initializer(graph, f"{weight.name}.folded", array))
    else:
        weight.const_value = ir.tensor(np.ascontiguousarray(array), name=weight.name)


def _take_place(value: ir.Value, total: ir.Value) -> None:
    """Put ``value`` where ``total`` was, also as an output of the model, whose name stays."""
    value.shape, value.type = total.shape, total.type
    is_output = total.is_graph_output()
    total.replace_all_uses_with(value, replace_graph_outputs=True)
    if is_output:
        name, total.name = total.name, f"{total.name}.unfolded"
        value.name = name
