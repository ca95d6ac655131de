"""The discrete Fourier transform."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.padding import padded
from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.definitions.spectrum import transform
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import dims_of, dtype_of, rank


@rule("DFT")
def dft(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """y = F x, a complex linear map whose adjoint is the inverse transform, times N; that of the inverse is F / N.

    Numbers are pairs, real and imaginary part. A real x has the real part of the gradient. Bins that a one-sided
    transform leaves out have none. Its inverse y = 1/N Σ_k w_k Re(x_k exp(2πikn/N)) reads every bin but the first and
    the middle one twice, w = 2, as the conjugate one.
    """
    x, axis, inverse = operand(node), _axis(node), bool(node.attributes.get_int("inverse", 0))
    if present(node, 1) is None and not node.attributes.get_int("onesided", 0):
        return (_of_whole(node, x, dy, axis, inverse, emit),)
    length = _length(node, axis)
    if node.attributes.get_int("onesided", 0) and inverse:
        weights = _weights(length, axis, x, emit)
        dx = emit.op("Mul", transform(emit, dy, axis, onesided=1), weights)
        return (_resized(dx, length // 2 + 1, _size(node, x, axis), x, axis, emit),)
    if node.attributes.get_int("onesided", 0):
        dy = padded(dy, rank(x), {axis: (0, length - length // 2 - 1)}, emit)
    scale = emit.scalar(1 / length if inverse else float(length), like=x)
    dx = _real(node, x, emit.op("Mul", transform(emit, dy, axis, inverse=not inverse), scale), emit)
    return (_resized(dx, length, _size(node, x, axis), x, axis, emit),)


def _of_whole(node: ir.Node, x: ir.Value, dy: ir.Value, axis: int, inverse: bool, emit: Emitter) -> ir.Value:
    """The gradient of a transform of a whole signal, whose length may be free."""
    length = emit.cast(emit.dim(x, axis), dtype_of(x))
    dx = transform(emit, dy, axis, inverse=not inverse)
    return _real(node, x, emit.op("Div" if inverse else "Mul", dx, length), emit)


def _real(node: ir.Node, x: ir.Value, dx: ir.Value, emit: Emitter) -> ir.Value:
    """The real part, where x has no other."""
    parts = dims_of(x)[-1]
    if not isinstance(parts, int):
        raise NoGradientForCase(
            node, "it is not known whether its signal is complex", "declare the shapes of the inputs"
        )
    if parts != 1:
        return dx
    return emit.op("Slice", dx, emit.ints(0), emit.ints(1), emit.ints(-1))


def _axis(node: ir.Node) -> int:
    """The axis of the signal, counted from the front; an attribute before opset 20, then an input."""
    given = known_ints(present(node, 2)) if present(node, 2) is not None else [node.attributes.get_int("axis", -2)]
    if node.version is None and node.graph is not None and node.graph.opset_imports.get("", 20) < 20:
        given = [node.attributes.get_int("axis", 1)]
    if given is None:
        raise NoGradientForCase(node, "its axis is computed at run time", "make it a constant")
    return int(given[0]) % rank(operand(node))


def _size(node: ir.Node, value: ir.Value, axis: int) -> int:
    size = dims_of(value)[axis]
    if not isinstance(size, int):
        raise NoGradientForCase(node, "the length of its signal is not known", "declare the shapes of the inputs")
    return size


def _length(node: ir.Node, axis: int) -> int:
    """N: the given length, or that of the signal."""
    given = present(node, 1)
    if given is None:
        onesided, inverse = (node.attributes.get_int(name, 0) for name in ("onesided", "inverse"))
        size = _size(node, operand(node), axis)
        return 2 * (size - 1) if onesided and inverse else size
    length = known_ints(given)
    if length is None:
        raise NoGradientForCase(node, "its length is computed at run time", "make it a constant")
    return length[0]


def _weights(length: int, axis: int, x: ir.Value, emit: Emitter) -> ir.Value:
    weights = np.full(length // 2 + 1, 2 / length)
    weights[0] = 1 / length
    if length % 2 == 0:
        weights[-1] = 1 / length
    shape = [1] * rank(x)
    shape[axis] = -1
    return emit.constant(weights.reshape(shape).astype(dtype_of(x).numpy()))


def _resized(dx: ir.Value, have: int, wanted: int, x: ir.Value, axis: int, emit: Emitter) -> ir.Value:
    """Without what the signal was padded with, or with zeros for what was cut off."""
    return dx if have == wanted else padded(dx, rank(x), {axis: (0, wanted - have)}, emit)
