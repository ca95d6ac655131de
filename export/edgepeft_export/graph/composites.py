"""Operators of our own, which live only while a graph is compiled.

A product with a packed weight takes several kernels of ONNX Runtime, through which no gradient could be followed: the
rounded activation in the middle is an integer. So the product stays one node until its gradient is there, and
:func:`lower` then writes the kernels, for the forward and the backward products alike.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter

DOMAIN = "edgepeft"
CONTRIB = "com.microsoft"

INT8_MATMUL = "Int8MatMul"
"""``(x [..., K], w, scale, zero_point?, bias?) -> [..., N]``: x (w - zero_point) · scale + bias, in integer arithmetic.

``w`` is int8 or uint8, [K, N], or [N, K] with ``transB=1``; ``scale`` and ``zero_point`` are scalars or [N]; ``bias``
is [N]. ``x`` is rounded to 8 bits at run time, with one scale for the whole tensor. ``gradient`` says how the gradient
of the product is computed: see :class:`edgepeft_export.quantize.Quantization`.
"""

FAKE_QUANTIZE = "FakeQuantize"
"""``(x, scale, zero_point)``, attribute ``axis``: x rounded to what the integer type of ``zero_point`` can say."""

STOP_GRADIENT = "StopGradient"
"""``(x) -> x``, through which no gradient passes."""


def int8_matmul(
    emit: Emitter,
    x: ir.Value,
    w: ir.Value,
    scale: ir.Value,
    zero_point: ir.Value | None = None,
    bias: ir.Value | None = None,
    *,
    trans_b: int = 0,
    gradient: str = "row",
) -> ir.Value:
    """Append an :data:`INT8_MATMUL`."""
    return emit.op(INT8_MATMUL, x, w, scale, zero_point, bias, domain=DOMAIN, transB=trans_b, gradient=gradient)


def lower(model: ir.Model) -> None:
    """Write every composite as kernels that stock ONNX Runtime has, in place."""
    rounded: dict[ir.Value, tuple[ir.Value, ...]] = {}
    turned: dict[ir.Value, ir.Value] = {}
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        if node.op_type == INT8_MATMUL:
            _lower_int8_matmul(node, rounded, turned)
        elif node.op_type == FAKE_QUANTIZE:
            _lower_fake_quantize(node)
        elif node.op_type == STOP_GRADIENT:
            _replace(node, _before(node, "Identity", list(node.inputs))[0])
    model.graph.opset_imports.pop(DOMAIN, None)
    if rounded:
        model.graph.opset_imports.setdefault(CONTRIB, 1)


def _lower_int8_matmul(
    node: ir.Node, rounded: dict[ir.Value, tuple[ir.Value, ...]], turned: dict[ir.Value, ir.Value]
) -> None:
    x, w, scale, zero_point, bias = (*node.inputs, None, None)[:5]
    assert x is not None and w is not None
    if x not in rounded:  # once for all products of one tensor: queries, keys and values read the same
        rounded[x] = tuple(_before(node, "DynamicQuantizeLinear", [x], outputs=3))
    quantized, x_scale, x_zero_point = rounded[x]
    if node.attributes.get_int("transB", 0):
        if w not in turned:  # onnxruntime does it once, when it loads the graph
            turned[w] = _before(node, "Transpose", [w], perm=[1, 0])[0]
        w = turned[w]
    inputs = [quantized, w, x_scale, scale, x_zero_point, zero_point, bias]
    _replace(node, _before(node, "MatMulIntegerToFloat", inputs, domain=CONTRIB)[0])


def _lower_fake_quantize(node: ir.Node) -> None:
    x, scale, zero_point = node.inputs
    axis = int(node.attributes.get_int("axis", 1))
    quantized = _before(node, "QuantizeLinear", [x, scale, zero_point], axis=axis)[0]
    _replace(node, _before(node, "DequantizeLinear", [quantized, scale, zero_point], axis=axis)[0])


def _before(
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    *,
    domain: str = "",
    outputs: int = 1,
    **attributes: int | list[int],
) -> list[ir.Value]:
    """Put a node in front of ``node``; returns its outputs."""
    made = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=f"{node.name}/{op_type}")
    node.prepend(made)
    return list(made.outputs)


def _replace(node: ir.Node, value: ir.Value) -> None:
    """Let ``value`` take the place of the node's output."""
    old = node.outputs[0]
    value.shape, value.type = old.shape, old.type
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    value.name, old.name = old.name, None
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def zero_point_is_zero(value: ir.Value | None) -> bool:
    """Whether a zero point is missing or a constant without effect."""
    if value is None:
        return True
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and not np.any(tensor.numpy())
