"""Images put together from overlapping blocks."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.reading import attribute_ints
from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands
from edgepeft_export.graph.shapes import dtype_of


@rule("Col2Im")
def col2im(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Each pixel is the sum of the blocks' entries on it, so the gradient of a block is that of its pixels.

    A convolution cuts the blocks out: with one kernel for each entry of a block, which is 1 there and 0 elsewhere.
    Channels are images of their own.
    """
    x, image, block = operands(node)
    kernel = known_ints(block)
    if kernel is None:
        raise NoGradientForCase(node, "the shape of its blocks is computed at run time", "make it a constant")
    axes, size = len(kernel), prod(kernel)
    images = emit.op("Reshape", dy, emit.op("Concat", emit.ints(-1, 1), image, axis=0))
    entries = emit.constant(np.eye(size, dtype=dtype_of(x).numpy()).reshape(size, 1, *kernel))
    window = {
        "strides": attribute_ints(node, "strides", [1] * axes),
        "dilations": attribute_ints(node, "dilations", [1] * axes),
        "pads": attribute_ints(node, "pads", [0] * 2 * axes),
    }
    blocks = emit.op("Conv", images, entries, domain="", **window)
    return emit.op("Reshape", blocks, emit.shape_of(x), allowzero=1), None, None
