"""The frozen weights of a graph, and how they are read, which decides how each can be quantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.constants import initializer_array, is_frozen
from edgepeft_export.graph.linear import LinearSite
from edgepeft_export.graph.shapes import dims_of, rank


@dataclass(frozen=True)
class Weight:
    """A frozen float tensor all of whose readers can read a quantized one.

    Attributes:
        channels: the axis along which an output channel (of a table: a row) lies.
    """

    value: ir.Value
    channels: int

    @property
    def name(self) -> str:
        """Name of the initializer, without the suffix of the exporter's transposition."""
        return str(self.value.name).removesuffix(".T")

    @property
    def array(self) -> NDArray[np.float32]:
        """Its content."""
        return np.asarray(initializer_array(self.value), np.float32)

    @property
    def is_kernel(self) -> bool:
        """Whether it is the kernel of a convolution."""
        return rank(self.value) > 2


def weights_of(graph: ir.Graph, smallest: int) -> Iterator[Weight]:
    """Every frozen tensor of ``smallest`` elements or more that can be quantized, in the order the graph reads them."""
    seen: set[ir.Value] = set()
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in seen:
                seen.add(value)
                channels = _channels(value) if _is_large(value, smallest) else None
                if channels is not None:
                    yield Weight(value, channels)


def _is_large(value: ir.Value, smallest: int) -> bool:
    tensor = value.const_value
    if tensor is None or not is_frozen(value) or value.is_graph_output() or _is_depthwise(value):
        return False
    return tensor.dtype == ir.DataType.FLOAT and tensor.size >= smallest and len(tensor.shape) >= 2


def _is_depthwise(value: ir.Value) -> bool:
    """Whether it is a kernel of one channel, which has few bytes and is twice as slow when dequantized."""
    return value.shape is not None and rank(value) > 2 and dims_of(value)[1] == 1


def _channels(value: ir.Value) -> int | None:
    """The axis that all readers of a weight agree on."""
    axes = {_channels_of(use.node, use.idx, rank(value)) for use in value.uses()}
    return axes.pop() if len(axes) == 1 else None


def _channels_of(node: ir.Node, index: int, of_rank: int) -> int | None:
    """The axis of output channels where ``node`` reads a weight as its input ``index``."""
    if node.domain:
        return None
    if node.op_type == "Gather" and index == 0 and of_rank == 2 and not node.attributes.get_int("axis", 0):
        return 0
    linear = LinearSite.of(node) if index == 1 else None
    return None if linear is None or (node.op_type == "MatMul" and not _has_rows(linear.x)) else linear.channels


def _has_rows(x: ir.Value) -> bool:
    return x.shape is not None and rank(x) >= 2
