"""Static shapes and dtypes of values."""

from __future__ import annotations

import re

import onnx_ir as ir

from edgepeft_export.graph.inference import infer
from edgepeft_runtime.errors import EdgepeftError

Dim = int | str | None
"""A size, the name of a symbolic size, or ``None`` for an unknown one."""


class UnknownRank(EdgepeftError, code="unknown-rank"):
    """A tensor of which not even the number of dimensions is known."""

    def __init__(self, value: ir.Value) -> None:
        producer = value.producer()
        node = f"{producer.op_type} (node {producer.name})" if producer is not None else "a graph input"
        super().__init__(
            f"The number of dimensions of tensor {value.name!r} is not known.",
            context=f"It comes from {node}, and a gradient has to cross it.",
            hint="declare the shapes of the model's inputs, or run onnx.shape_inference on the model first.",
        )


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and dtypes that ONNX can infer, in place."""
    for node in model.graph:
        if node.op_type == "STFT" and "onesided" not in node.attributes and not node.domain:
            node.attributes["onesided"] = ir.AttrInt64("onesided", 1)  # the default, which ONNX's inference has as 0
    infer(model)


def dims_of(value: ir.Value) -> list[Dim]:
    """The dimensions of ``value``; raises :class:`UnknownRank` where not even their number is known."""
    if value.shape is None:
        raise UnknownRank(value)
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def rank(value: ir.Value) -> int:
    """The number of dimensions of ``value``."""
    return len(dims_of(value))


def static_dims(value: ir.Value) -> list[int] | None:
    """The dimensions of ``value`` where all of them are known, else ``None``."""
    if value.shape is None:
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int)]
    return dims if len(dims) == len(value.shape) else None


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """The size that two sizes broadcast to; ``None`` where it is uncertain."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    # A known size other than 1 wins over a name: the name must be that size or 1.
    return next((dim for dim in (a, b) if isinstance(dim, int)), None)


def dtype_of(value: ir.Value) -> ir.DataType:
    """The dtype of a value, which must be known."""
    assert value.dtype is not None, f"the dtype of tensor {value.name!r} is not known"
    return value.dtype


def is_float(value: ir.Value) -> bool:
    """Whether a value is known to be made of floating point numbers."""
    return value.dtype is not None and value.dtype.is_floating_point()


def at_most(size: int, of: str) -> str:
    """The name of a symbolic size that is at most ``size``. Sizes of different things have different names."""
    return f"at_most_{size}_of_{re.sub(r'[^A-Za-z0-9]+', '_', of)}"


def largest_size(dim: object) -> int | None:
    """The bound in a name of :func:`at_most`; ``None`` for other names."""
    bound = re.match(r"at_most_(\d+)_of_", str(dim))
    return None if bound is None else int(bound[1])
