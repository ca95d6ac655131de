"""Tensors that a graph has in float32 and the host in half precision, as the checkpoint."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class Widened(ir.LazyTensor):
    """A tensor of half precision as float32. It is converted each time it is read, and never kept.

    Args:
        narrow: the tensor in half precision; a matrix may be a transposed view.
    """

    def __init__(self, narrow: ir.TensorProtocol) -> None:
        self.narrow = narrow
        super().__init__(self._wide, ir.DataType.FLOAT, ir.Shape(narrow.shape.numpy()), name=narrow.name)

    def _wide(self) -> ir.TensorProtocol:
        return ir.Tensor(self.narrow.numpy().astype("float32", order="K"), name=self.name)


def stored_array(tensor: ir.TensorProtocol) -> NDArray[np.generic]:
    """A tensor's content as the host has it: two of one dtype are equal where these are."""
    return tensor.narrow.numpy() if isinstance(tensor, Widened) else tensor.numpy()
