"""Linear models and scalers of scikit-learn, which ONNX has in a domain of its own, with the weights as attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.definitions.registry import Definition, NotDefined, definition
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, producer_of
from edgepeft_export.graph.shapes import rank
from edgepeft_export.opset.domains import ML

Given = Sequence[ir.Value | None]

_AGAIN = "convert the model again with other settings"


def _classical(op_type: str) -> Callable[[Definition], Definition]:
    return definition(f"{ML}.{op_type}")


@_classical("Scaler")
def scaler(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """``(x - offset) · scale``."""
    x = _floats(given, emit)
    moved = emit.op("Sub", x, emit.constant(_numbers(node, "offset")))
    return (emit.op("Mul", moved, emit.constant(_numbers(node, "scale"))),)


@_classical("Normalizer")
def normalizer(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """Each row divided by its norm. Probabilities of a Softmax have the sum 1 already."""
    x, norm = _floats(given, emit), node.attributes.get_string("norm", "MAX")
    if norm == "MAX":
        raise NotDefined("it divides each row by its largest element", "normalize by the norm L1 or L2")
    if norm == "L1" and producer_of(operand(node), "Softmax") is not None:
        return (x,)
    length = emit.op(f"Reduce{norm}", x, emit.ints(-1), keepdims=1)
    return (emit.op("Div", x, emit.op("Max", length, emit.scalar(1e-30, like=x))),)


@_classical("LinearRegressor")
def linear_regressor(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """``x Wᵀ + b``."""
    if node.attributes.get_string("post_transform", "NONE") != "NONE":
        raise NotDefined("it transforms its results", _AGAIN)
    return (_linear(node, given, emit, node.attributes.get_int("targets", 1)),)


@_classical("LinearClassifier")
def linear_classifier(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """The classes with the largest scores ``x Wᵀ + b``, and probabilities of the scores.

    Two classes with opposite weights are one logistic regression: the scores 0 and ``x w + b``.
    """
    names, texts = _classes(node), bool(node.attributes.get_strings("classlabels_strings", ()))
    if texts and node.outputs[0].uses():
        raise NotDefined("other nodes read its labels, which are texts", _AGAIN)
    rows = len(node.attributes.get_floats("intercepts", ())) or len(names)
    kind = node.attributes.get_string("post_transform", "NONE")
    if kind == "LOGISTIC" and len(names) == 2 and _is_one(node, rows):
        right = _linear(node, given, emit, rows, last=True)
        scores, kind = emit.op("Pad", right, emit.ints(0, 1, 0, 0)), "SOFTMAX"
    elif rows == len(names):
        scores = _linear(node, given, emit, rows)
    else:
        raise NotDefined(f"it has {rows} rows of weights for {len(names)} classes", _AGAIN)
    if kind == "SOFTMAX":
        found = emit.op("Softmax", scores, axis=-1)
    elif kind == "LOGISTIC":
        found = emit.op("Sigmoid", scores)
    elif kind == "NONE":
        found = scores
    else:
        raise NotDefined(f"it transforms its scores by {kind}", _AGAIN)
    best = emit.op("ArgMax", scores, axis=-1, keepdims=0)
    best.type = ir.TensorType(ir.DataType.INT64)
    return (None if texts else emit.op("Gather", emit.constant(names), best, axis=0), found)


def _classes(node: ir.Node) -> NDArray[np.generic]:
    """The label of each class, or its number where labels are texts, which devices do not return."""
    numbers = node.attributes.get_ints("classlabels_ints", ())
    return np.asarray(numbers or range(len(node.attributes.get_strings("classlabels_strings", ()))), np.int64)


def _is_one(node: ir.Node, rows: int) -> bool:
    """Whether there is one row of weights, or the first is the second with the other sign."""
    weights, bias = (_numbers(node, name) for name in ("coefficients", "intercepts"))
    if rows == 1:
        return True
    first, second = weights.reshape(2, -1)
    return bool(np.array_equal(first, -second)) and (not bias.size or bool(bias[0] == -bias[1]))


def _linear(node: ir.Node, given: Given, emit: Emitter, rows: int, *, last: bool = False) -> ir.Value:
    """``x Wᵀ + b`` with all rows of W, or the last. Its tensors are initializers, which may train."""
    x = _floats(given, emit)
    if x.shape is not None and rank(x) != 2:
        raise NotDefined(f"it reads a tensor of {rank(x)} axes", "give it rows of features")
    weights, bias = _numbers(node, "coefficients").reshape(rows, -1), _numbers(node, "intercepts")
    if last:
        weights, bias = weights[-1:], bias[-1:]
    matrix = emit.stored("coefficients", np.ascontiguousarray(weights))
    vector = emit.stored("intercepts", np.ascontiguousarray(bias)) if bias.size else None
    return emit.op("Gemm", x, matrix, vector, transB=1)


def _floats(given: Given, emit: Emitter) -> ir.Value:
    x = given[0]
    assert x is not None
    return emit.cast(x, ir.DataType.FLOAT)


def _numbers(node: ir.Node, name: str) -> NDArray[np.float32]:
    return np.asarray(node.attributes.get_floats(name, ()), np.float32)
