"""Ensures that a LoRA branch of a frozen linear layer costs nothing.

Pattern, matched on the graph and not by names: two consecutive linear layers with trained matrices, scaled anywhere,
added to a third one with the same input: ``Add(base, branch)`` with ``branch = s (x A) B`` and ``base = x W``, perhaps
with a bias and reshaped. Of convolutions, B has a kernel of one element and A has the window of W.
Algebra: ``x W + s (x A) B = x (W + s A B)``.
Branches of another form are left alone, which is correct but slower.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.graph.constants import MASKED_FRACTION, constant_factor, is_frozen
from edgepeft_export.graph.edit import replace_value
from edgepeft_export.graph.linear import LinearSite, Matrix
from edgepeft_export.graph.match import producer_of
from edgepeft_export.graph.shapes import Dim, dims_of, rank

_WINDOW: dict[str, str | int] = {"auto_pad": "NOTSET", "dilations": 1, "group": 1, "pads": 0, "strides": 1}
"""Attributes of a convolution other than the kernel's shape, with their defaults."""


@dataclass(frozen=True)
class _Pair:
    """A LoRA branch and the layer that it is added to.

    Attributes:
        base: the frozen layer.
        base_output: the other operand of the sum: the layer's output, perhaps with a bias, perhaps reshaped.
        total: the sum.
        delta: the branch as one matrix in the layout of ``base.matrix()``.
    """

    base: LinearSite
    base_output: ir.Value
    total: ir.Value
    delta: Matrix


@dataclass(frozen=True)
class _Branch:
    """``s (x A) B``: the input x, the first layer (which has the window of convolutions), and ``s A B``."""

    x: ir.Value
    first: LinearSite
    delta: Matrix


def fold_lora(
    model: ir.Model, trained: Collection[ir.Value], *, into_quantized: bool = False, spare_masks: bool = True
) -> int:
    """Fold every LoRA branch into the weight of its layer, in place.

    Args:
        model: an inference graph whose trained tensors are initializers.
        trained: these initializers; only branches whose two matrices are among them are folded.
        into_quantized: fold into quantized weights as well, and round them again.
        spare_masks: leave weights with many zeros alone.

    Returns:
        The number of branches folded.
    """
    folded = 0
    for node in list(model.graph):
        pair = _pair(node, trained)
        if pair is None or (pair.base.is_quantized and not into_quantized):
            continue
        if not (spare_masks and not pair.base.is_quantized and _is_masked(pair.base)):
            pair.base.with_matrix(pair.base.matrix() + pair.delta)
            replace_value(pair.total, pair.base_output)
            folded += 1
    common.RemoveUnusedNodesPass()(model)
    return folded


def _pair(node: ir.Node, trained: Collection[ir.Value]) -> _Pair | None:
    if node.op_type != "Add":
        return None
    left, right = node.inputs
    for base_output, branch_output in ((left, right), (right, left)):
        if base_output is None or branch_output is None:
            return None
        base, branch = _base(base_output), _branch(branch_output, trained)
        if base is None or branch is None or base.weight in trained:
            continue
        if _reads_alike(base, branch) and base.matrix().shape == branch.delta.shape:
            return _Pair(base, base_output, node.outputs[0], branch.delta)
    return None


def _readable(value: ir.Value) -> LinearSite | None:
    """The layer that computes ``value``, where its matrix can be read."""
    linear = LinearSite.of(_without_steps(value).producer())
    return linear if linear is not None and linear.storage != "other" and linear.result is value else None


def _without_steps(value: ir.Value) -> ir.Value:
    """The product of integers of which ``value`` is a multiple by row, or ``value``."""
    node = producer_of(value, "Mul")
    product = None if node is None else node.inputs[0]
    corrected = producer_of(product, "Add")  # by the rows' zero points, or by the rest in a second product
    product = product if corrected is None else corrected.inputs[0]
    halves = producer_of(product, "Split")
    product = product if halves is None else halves.inputs[0]
    return product if product is not None and producer_of(product, "MatMulIntegerToFloat") is not None else value


def _base(value: ir.Value) -> LinearSite | None:
    """The layer that computes ``value``, perhaps with a constant bias, perhaps reshaped. Nothing else may read it."""
    before: ir.Value | None = value
    while before is not None and len(before.uses()) == 1 and not before.is_graph_output():
        if (linear := _readable(before)) is not None:
            return linear
        before = _without_bias(before) or _reshaped(before)
    return None


def _branch(value: ir.Value, trained: Collection[ir.Value]) -> _Branch | None:
    """The branch that computes ``value``, with its constant factor anywhere; ``None`` where ``value`` is no branch."""
    after, value = _unscaled(value)
    second = _readable(value)
    between, value = _unscaled(second.x) if second is not None else (1.0, value)
    first = _readable(value)
    if first is None or second is None or first.bias is not None or second.bias is not None:
        return None
    if first.weight not in trained or second.weight not in trained or first.is_conv != second.is_conv:
        return None
    if second.is_conv and not _is_pointwise(second):
        return None
    before, x = _unscaled(first.x)
    a, b = first.matrix(), second.matrix()
    both = np.einsum("or,ri...->oi...", b.reshape(b.shape[:2]), a) if first.is_conv else a @ b
    return _Branch(x, first, after * between * before * both)


def _unscaled(value: ir.Value) -> tuple[float, ir.Value]:
    """``(s, x)`` of ``value = s x`` with constant numbers; ``(1, value)`` where there are none."""
    scale = 1.0
    while (scaled := constant_factor(value)) is not None:
        scale, value = scale * scaled[0], scaled[1]
    return scale, value


def _reads_alike(base: LinearSite, branch: _Branch) -> bool:
    """Whether a layer reads the branch's input, through the same window."""
    if base.is_conv or branch.first.is_conv:
        same_window = _window(base.node) == _window(branch.first.node) and base.groups == 1
        return base.x is branch.x and same_window
    return base.x is branch.x or _flattens(base.x, branch.x)


def _is_masked(base: LinearSite) -> bool:
    """Whether a mask keeps weights at zero. A dense branch would fill them."""
    return bool(np.mean(base.matrix() == 0) >= MASKED_FRACTION)


def _flattens(flat: ir.Value, source: ir.Value) -> bool:
    """Whether ``flat`` is ``source`` with its leading axes flattened: the same rows in the same order."""
    node = producer_of(flat, "Reshape") or producer_of(flat, "Flatten")
    return node is not None and node.inputs[0] is source and _width(flat) is not None and _width(flat) == _width(source)


def _is_pointwise(linear: LinearSite) -> bool:
    """Whether a convolution is a matmul per position: a kernel of one element, no stride, no padding, one group."""
    plain = {name: value for name, value in _window(linear.node).items() if name != "dilations"}
    return all(size == 1 for size in linear.kernel) and all(value == _WINDOW[name] for name, value in plain.items())


def _window(node: ir.Node) -> dict[str, object]:
    """The attributes of a convolution, each as one number where it is the same along all axes."""
    given = {name: node.attributes[name].value if name in node.attributes else plain for name, plain in _WINDOW.items()}
    return {name: _uniform(value) for name, value in given.items()}


def _uniform(value: object) -> object:
    if not isinstance(value, (list, tuple)):
        return value
    return value[0] if len(set(value)) == 1 else tuple(value)


def _without_bias(value: ir.Value) -> ir.Value | None:
    """``x`` of ``value = x + bias`` with a constant vector."""
    node = producer_of(value, "Add")
    left, right = node.inputs if node is not None else (None, None)
    for bias, other in ((right, left), (left, right)):
        if bias is not None and is_frozen(bias) and rank(bias) <= 1:
            return other
    return None


def _reshaped(value: ir.Value) -> ir.Value | None:
    """``x`` of ``value = Reshape(x)`` where the last axis, of known size, stays."""
    node = producer_of(value, "Reshape")
    source = node.inputs[0] if node is not None else None
    return source if _width(source) is not None and _width(source) == _width(value) else None


def _width(value: ir.Value | None) -> Dim:
    """The size of the last axis where it is known."""
    last = dims_of(value)[-1] if value is not None and value.shape is not None and rank(value) else None
    return last if isinstance(last, int) else None
