"""Nodes that several losses emit, and what they read from the model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim, dims_of, dtype_of
from edgepeft_export.losses.base import Labels, LossTerms

Values = Mapping[str, ir.Value]

FIRST_LOGITS = "first_logits"
"""Output of a causal model with a prompt: what the prompt's last position predicts, the input's first token."""


def mean_of_all(emit: Emitter, values: ir.Value) -> LossTerms:
    """The mean over all elements, as a sum and their number."""
    weight = emit.op("Cast", emit.op("Size", values), to=enum(values))
    return LossTerms(emit.op("ReduceSum", values, keepdims=0), weight)


def targets(outputs: Values) -> Labels:
    """float32 labels of the shape of the first output."""
    return Labels("labels", ir.DataType.FLOAT, tuple(dims_of(first(outputs))))


def first(outputs: Values) -> ir.Value:
    """The output that the loss reads."""
    return next(iter(outputs.values()))


def known(value: ir.Value, axis: int) -> int:
    """A dimension that ``labels`` has found to be known."""
    dim = dims_of(value)[axis]
    assert isinstance(dim, int)  # labels() has refused anything else
    return dim


def enum(like: ir.Value) -> int:
    """The number of a value's element type, as ``Cast`` reads it."""
    return int(dtype_of(like))


def text(dims: Sequence[Dim]) -> str:
    """A shape for a message."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"
