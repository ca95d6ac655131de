"""Nodes that several losses emit, and readers of the model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim, dims_of, rank
from edgepeft_export.losses.base import Labels

Values = Mapping[str, ir.Value]

FIRST_LOGITS = "first_logits"
"""Output of a causal model with a prompt: the prompt's last logits, which predict the input's first token."""


def targets(outputs: Values) -> Labels:
    """float32 labels of the shape of the first output."""
    return Labels("labels", ir.DataType.FLOAT, tuple(dims_of(first(outputs))))


def first(outputs: Values) -> ir.Value:
    """The output that the loss reads."""
    return next(iter(outputs.values()))


def spread_over(emit: Emitter, weights: ir.Value | None, labels: ir.Value) -> ir.Value | None:
    """Weights of examples [batch] repeated for each of their labels [batch, ...], flat."""
    if weights is None or rank(labels) == 1:
        return weights
    along = emit.op("Unsqueeze", weights, emit.ints(*range(1, rank(labels))))
    return emit.op("Reshape", emit.op("Expand", along, emit.op("Shape", labels)), emit.ints(-1))


def known_dim(value: ir.Value, axis: int) -> int:
    """A dimension, which ``labels`` has checked to be known."""
    dim = dims_of(value)[axis]
    assert isinstance(dim, int)  # labels() has refused anything else
    return dim


def text(dims: Sequence[Dim]) -> str:
    """A shape for a message."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"
