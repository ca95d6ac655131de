"""Channels of an activation that are divided by factors before it is rounded, and multiplied by them in the matrix.

``x W = (x / f) (f W)``: a few channels of a language model's activations are much larger than the others, and would
determine the step of a whole row (SmoothQuant: Xiao et al., ICML 2023). The division is a node of its own before the
matmul, so a low-rank pair beside it reads x itself, and the gradient is that of any product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.constants import is_frozen
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import producer_of

_SUFFIX = ".smoothing"


@dataclass(frozen=True)
class Smoothing:
    """The factors of an activation, which all matmuls that read it share.

    Attributes:
        weight: The name of the first weight of these matmuls.
        reciprocals: float32 [channels], ``1 / f``.
        fine: Whether the quotient is rounded to 16 bits.
    """

    weight: str
    reciprocals: NDArray[np.float32]
    fine: bool = False

    def divided(self, x: ir.Value, emit: Emitter) -> ir.Value:
        """Append ``x / f``."""
        y = emit.op("Mul", x, emit.stored(self.weight + _SUFFIX, self.reciprocals))
        y.shape = x.shape
        return y

    def multiplied(self, matrix: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        """``f W``, where the channels lie along ``axis``."""
        shape = [1, 1]
        shape[axis] = -1
        return matrix / self.reciprocals.reshape(shape)


def before_smoothing(x: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The activation and the reciprocals that ``x`` is the product of, ``None`` where it is not smoothed."""
    node = producer_of(x, "Mul")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    whole, reciprocals = node.inputs[0], node.inputs[1]
    stored = is_frozen(reciprocals) and str(reciprocals.name).endswith(_SUFFIX)
    return (whole, reciprocals) if stored else None
