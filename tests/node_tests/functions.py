"""A node test as a function of its inputs, in float64 where something computes it so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.node_tests.cases import FLOATS, Array, NodeTest
from tests.support.onnx_runs import session

Feeds = Mapping[str, Array]
_NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Function:
    """What finite differences are taken of.

    Attributes:
        outputs: the outputs for some inputs, in the graph's order.
        dtype: of its arithmetic.
        costly: whether it is the reference implementation, in Python.
    """

    outputs: Callable[[Feeds], list[Array]]
    dtype: type
    costly: bool = False


def function_of(test: NodeTest) -> Function:
    """The most exact implementation that agrees with ONNX Runtime's own result."""
    exact = session(test.model)
    plain = Function(lambda feeds: list(exact.run(None, dict(feeds))), _lowest(test))
    expected = plain.outputs(test.feeds)
    for candidate in _in_double(test):
        try:
            outputs = candidate.outputs(in_double(test.feeds))
            if _agree(outputs, expected) and _is_exact(candidate, test, outputs):
                return candidate
        except Exception:
            continue
    return plain


def _is_exact(function: Function, test: NodeTest, outputs: list[Array]) -> bool:
    """Whether the outputs grow a thousand times as much for a thousand times the growth of the inputs.

    Some operators compute in float32 whatever they are given, and do not see the smaller one.
    """
    feeds = in_double(test.feeds)
    near, far = (
        function.outputs({name: _grown(array, fraction) for name, array in feeds.items()}) for fraction in (1e-8, 1e-5)
    )
    return all(
        _is_linear(*points)
        for points in zip(outputs, near, far, strict=True)
        if points[0].dtype == np.float64 and points[0].shape == points[1].shape == points[2].shape
    )


def _is_linear(start: Array, near: Array, far: Array) -> bool:
    finite = np.isfinite(start) & np.isfinite(near) & np.isfinite(far)
    largest = np.abs(start).max(initial=1, where=finite)
    steps = ((end - start)[finite] for end in (near, far))
    return np.allclose(1000 * next(steps), next(steps), rtol=1e-2, atol=1e-9 * largest)


def _grown(array: Array, fraction: float) -> Array:
    """Floats with a little more of their own size."""
    return array * (1 + fraction) if array.dtype == np.float64 else array


def in_double(feeds: Feeds) -> dict[str, Array]:
    """The inputs with all floats as float64."""
    return {name: array.astype(np.float64) if array.dtype.type in FLOATS else array for name, array in feeds.items()}


def _lowest(test: NodeTest) -> type:
    kinds: list[type] = [test.feeds[name].dtype.type for name in test.targets]
    return min(kinds, key=lambda kind: np.dtype(kind).itemsize)


def _in_double(test: NodeTest) -> Iterator[Function]:
    model = double(test.model)
    large = max((array.size for array in test.feeds.values()), default=0) > 2_000
    try:
        kernels = session(model)
        yield Function(lambda feeds: list(kernels.run(None, dict(feeds))), np.float64)
    except Exception:
        pass
    if large:
        return  # a convolution in Python takes seconds
    try:
        reference = ReferenceEvaluator(model)
        yield Function(lambda feeds: _quietly(reference, feeds), np.float64, costly=True)
    except Exception:
        pass


def _quietly(reference: ReferenceEvaluator, feeds: Feeds) -> list[Array]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return [np.asarray(made) for made in reference.run(None, dict(feeds))]


def _agree(have: list[Array], want: list[Array]) -> bool:
    """Whether all float outputs are double and, up to rounding, the expected ones."""
    pairs = [(a, b) for a, b in zip(have, want, strict=True) if isinstance(b, np.ndarray) and b.dtype.type in FLOATS]
    return all(
        a.dtype == np.float64
        and a.shape == b.shape
        and np.allclose(
            a, b.astype(np.float64), rtol=2e-2 if b.dtype == np.float16 else 2e-3, atol=2e-3, equal_nan=True
        )
        for a, b in pairs
    )


def double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float64 instead of float32 and float16."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _double_graph(made.graph)
    return made


def _double_graph(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _NARROW:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _double_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            _double_attribute(node, attribute)


def _double_attribute(node: onnx.NodeProto, attribute: AttributeProto) -> None:
    if attribute.type == AttributeProto.TENSOR:
        _double_tensor(attribute.t)
    elif attribute.type == AttributeProto.GRAPH:
        _double_graph(attribute.g)
    elif attribute.name in ("to", "dtype", "stash_type", "softmax_precision") and attribute.i in _NARROW:
        attribute.i = TensorProto.DOUBLE
    elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        scalar = attribute.name == "value_float"
        content = np.asarray(attribute.f if scalar else list(attribute.floats), np.float64)
        attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(content)))


def _double_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _NARROW:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
