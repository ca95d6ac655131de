"""Ensures that a sum of two pointwise convolutions, as of a layer and its LoRA pair, is one where its result is wide.

Pattern, with 1 x 1 kernels, stride 1, and the two results read once: ``Add(Conv(x, w, b), Conv(u, v))`` becomes
``Conv(Concat(x, u), Concat(w, v), b)``. Algebra: ``w x + v u = [w v] [x; u]``.

For train graphs, after the gradient: a convolution with stacked weights would have a gradient for the frozen ones too.
The sum, the second wide result and a way out of ONNX Runtime's blocked layout are saved; joining inputs and weights
costs a copy of each. So it pays where the inputs have at most half the channels of the result, and images have more
elements than the inputs have channels. Two convolutions that read one wide image gained nothing when joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from edgepeft_export.graph.edit import replace_node
from edgepeft_export.graph.match import only_reader, operand, operands, present
from edgepeft_export.graph.shapes import infer_shapes, static_dims


@dataclass(frozen=True)
class _Pointwise:
    """A convolution with one tap: ``made`` channels of ``channels``, for images of ``pixels`` elements."""

    node: ir.Node
    channels: int
    made: int
    pixels: int


def stack_convolutions(model: ir.Model) -> bool:
    """Join sums of pointwise convolutions, in place. Returns whether there was one to join."""
    if not any(node.op_type == "Conv" for node in model.graph):
        return False
    infer_shapes(model)
    sums = [node for node in model.graph if node.op_type == "Add" and not node.domain]
    added = [_join_sum(add) for add in sums]
    return any(added)


def _join_sum(add: ir.Node) -> bool:
    """``[w v] [x; u]`` for a sum of two convolutions."""
    if any(only_reader(value, "Add") is None for value in operands(add)):
        return False
    parts = [part for value in operands(add) if (part := _pointwise(value.producer())) is not None]
    if len(parts) < 2 or parts[0].node is parts[1].node or parts[0].pixels != parts[1].pixels:
        return False
    first, second = parts
    biases = [bias for part in parts if (bias := present(part.node, 2)) is not None]
    narrow = first.channels + second.channels
    if len(biases) > 1 or first.made != second.made or 2 * narrow > first.made or narrow > first.pixels:
        return False
    inputs, weights = ([operand(part.node, index) for part in parts] for index in (0, 1))
    joined = [_concat(add, inputs, "inputs"), _concat(add, weights, "weights"), *biases]
    replace_node(add, ir.node("Conv", joined, {"kernel_shape": [1, 1]}, name=f"{first.node.name}/stacked"))
    return True


def _concat(before: ir.Node, values: Sequence[ir.Value], name: str) -> ir.Value:
    node = ir.node("Concat", values, {"axis": 1}, name=f"{before.name}/{name}")
    node.outputs[0].type = values[0].type
    before.prepend(node)
    return node.outputs[0]


def _pointwise(node: ir.Node | None) -> _Pointwise | None:
    if node is None or node.op_type != "Conv" or node.domain:
        return None
    weight, image = static_dims(operand(node, 1)), operand(node).shape
    sizes = [] if image is None else [size for size in list(image)[2:] if isinstance(size, int)]
    plain = (
        int(node.attributes.get_int("group", 1)) == 1
        and all(step == 1 for step in node.attributes.get_ints("strides", [1]))
        and not any(node.attributes.get_ints("pads", [0]))
        and str(node.attributes.get_string("auto_pad", "NOTSET")) in ("NOTSET", "VALID")
    )
    if not plain or weight is None or weight[2:] != [1, 1] or len(sizes) != 2:
        return None
    return _Pointwise(node, weight[1], weight[0], prod(sizes))
