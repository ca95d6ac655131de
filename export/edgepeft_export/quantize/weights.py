"""The frozen weights of a graph, and how they are read, which decides how each can be quantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.constants import initializer_array, is_frozen, stored_array
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
        return _name(self.value)

    @property
    def array(self) -> NDArray[np.float32]:
        """Its content."""
        return np.asarray(initializer_array(self.value), np.float32)

    @property
    def stored(self) -> NDArray[np.generic]:
        """Its content as the host has it, perhaps in half precision."""
        tensor = self.value.const_value
        assert tensor is not None
        return stored_array(tensor)

    @property
    def is_kernel(self) -> bool:
        """Whether it is the kernel of a convolution."""
        return rank(self.value) > 2


def weights_of(graph: ir.Graph, smallest: int) -> Iterator[Weight]:
    """Every frozen tensor of ``smallest`` elements or more that can be quantized, in the order the graph reads them."""
    for value in _read_tensors(graph, smallest):
        if why_not(value) is None:
            (channels,) = _axes(value)
            assert channels is not None
            yield Weight(value, channels)


def reasons(graph: ir.Graph, smallest: int) -> dict[str, str]:
    """Why each frozen tensor of ``smallest`` elements or more that ``weights_of`` leaves out stays float."""
    found = ((value, why_not(value)) for value in _read_tensors(graph, smallest))
    return {_name(value): reason for value, reason in found if reason is not None}


def why_not(value: ir.Value) -> str | None:
    """Why a frozen tensor cannot be quantized; ``None`` where it can."""
    if value.is_graph_output():
        return "an output of the model"
    if value.dtype != ir.DataType.FLOAT:
        return f"its numbers are {value.dtype}"
    if rank(value) < 2:
        return "a vector"
    if rank(value) > 2 and dims_of(value)[1] == 1 and all(use.node.op_type == "Conv" for use in value.uses()):
        return "a kernel of one channel, which has few bytes and is twice as slow when dequantized"
    unread = {use.node.op_type for use in value.uses() if _channels_of(use.node, use.idx, rank(value)) is None}
    if unread:
        without = unread - _READERS
        names = " and ".join(sorted(without or unread))
        if not without:
            return f"read by {names} in a way that has no integer form"
        return f"read by {names}, which {'has' if len(without) == 1 else 'have'} no integer form"
    return None if len(_axes(value)) == 1 else "its readers need scales along different axes"


_READERS = frozenset({"Gather", "MatMul", "Gemm", "Conv"})
"""Operators that have an integer form."""


def _read_tensors(graph: ir.Graph, smallest: int) -> list[ir.Value]:
    """The large frozen float tensors, in the order the graph reads them."""
    read = dict.fromkeys(value for node in graph for value in node.inputs if value is not None)
    inner = dict.fromkeys(value for value in graph.initializers.values() if value.uses() or value.is_graph_output())
    return [value for value in read | inner if _is_large(value, smallest)]


def _is_large(value: ir.Value, smallest: int) -> bool:
    tensor = value.const_value
    return is_frozen(value) and tensor is not None and tensor.dtype.is_floating_point() and tensor.size >= smallest


def _axes(value: ir.Value) -> set[int | None]:
    """The axes of output channels that the readers of a weight need."""
    return {_channels_of(use.node, use.idx, rank(value)) for use in value.uses()}


def _channels_of(node: ir.Node, index: int, of_rank: int) -> int | None:
    """The axis of output channels where ``node`` reads a weight as its input ``index``."""
    if node.domain:
        return None
    if node.op_type == "Gather" and index == 0 and of_rank == 2 and not node.attributes.get_int("axis", 0):
        return 0
    linear = LinearSite.of(node) if index == 1 else None
    return None if linear is None or (node.op_type == "MatMul" and not _has_rows(linear.x)) else linear.channels


def _name(value: ir.Value) -> str:
    return str(value.name).removesuffix(".T")


def _has_rows(x: ir.Value) -> bool:
    return x.shape is not None and rank(x) >= 2
