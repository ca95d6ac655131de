"""Gradient rules, a table per family of operators. Importing this package registers them all."""

from edgepeft_export.autodiff.rules import (
    activation,
    analytic,
    conv,
    einsum,
    elementwise,
    index,
    matmul,
    normalization,
    padding,
    pool,
    quantized,
    reduction,
    shape,
    softmax,
    without,
)

__all__ = [
    "activation",
    "analytic",
    "conv",
    "einsum",
    "elementwise",
    "index",
    "matmul",
    "normalization",
    "padding",
    "pool",
    "quantized",
    "reduction",
    "shape",
    "softmax",
    "without",
]
