"""Norms over windows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from edgepeft_export.graph.definitions.algebra import Term
from edgepeft_export.graph.definitions.registry import definition
from edgepeft_export.graph.emit import Emitter


@definition("LpPool")
def lp_pool(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """y = (Σ |x|^p)^(1/p): the mean over a window, times its size. Where all are 0, y and its gradient are 0."""
    (x,) = given
    assert x is not None
    p = node.attributes.get_int("p", 2)
    window = {name: given.value for name, given in node.attributes.items() if name != "p"}
    powers = abs(Term(x, emit)) ** float(p)
    mean = Term(emit.op("AveragePool", powers.value, domain="", count_include_pad=1, **window), emit)
    total = mean * float(prod(node.attributes["kernel_shape"].as_ints()))
    none = total.equals(0.0)
    return (((total + none) ** (1 / p) - none).value,)


@definition("LRN")
def local_response(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """y = x / (bias + alpha · mean of x² over neighbouring channels)^beta (Krizhevsky et al., NeurIPS 2012).

    The mean over ``size`` channels counts missing ones as 0. Channels are the rows of an image that is pooled.
    """
    (x,) = given
    assert x is not None
    size = node.attributes["size"].as_int()
    before = (size - 1) // 2
    alpha, beta = node.attributes.get_float("alpha", 1e-4), node.attributes.get_float("beta", 0.75)
    squares = emit.op("Reshape", emit.op("Mul", x, x), emit.ints(0, 0, -1))
    images = emit.op("Unsqueeze", squares, emit.ints(1))
    pads = [before, 0, size - 1 - before, 0]
    means = emit.op("AveragePool", images, kernel_shape=[size, 1], pads=pads, count_include_pad=1)
    mean = Term(emit.op("Reshape", means, emit.shape_of(x)), emit)
    scale = (mean * alpha + node.attributes.get_float("bias", 1.0)) ** beta
    return ((Term(x, emit) / scale).value,)
