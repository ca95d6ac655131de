"""Shapes are those that the pass of onnx_ir infers."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from edgepeft_export.forward import from_torch
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.passes import name_squeezed_axes
from tests.support.networks import NETWORKS


@pytest.mark.parametrize("name", ["bert", "llama", "cnn"])
@pytest.mark.parametrize("missing", [2, 1])
def test_what_is_missing_is_inferred(name: str, missing: int) -> None:
    """Of a graph without any shapes inside, and with every second one, of nodes that compute shapes too."""
    network = NETWORKS[name]
    model = from_torch(network.model().requires_grad_(True).eval(), network.example()).model.clone()
    for position, value in enumerate(_inner(model)):
        if position % missing == 0:
            value.type = value.shape = None
    other = model.clone()
    infer_shapes(model)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(other)
    assert [str(value) for value in _inner(model)] == [str(value) for value in _inner(other)]
    assert any(value.shape is not None for value in _inner(model))


def _inner(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs if not value.is_graph_output()]


def test_a_model_that_cannot_be_inferred_stays_as_it_is() -> None:
    """Matrices that do not fit."""
    a, b = (ir.Value(name=name, shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.FLOAT)) for name in "ab")
    product = ir.node("MatMul", [a, b])
    model = ir.Model(ir.Graph([a, b], product.outputs, nodes=[product], opset_imports={"": 20}), ir_version=9)
    infer_shapes(model)
    assert product.outputs[0].shape is None and a.shape == ir.Shape([2, 3])


def test_shapes_after_a_squeeze_follow_its_named_axes() -> None:
    """A run with a batch of one has had no axis after a Squeeze without axes."""
    text = "g (float[n, 1] x) => (float y) { s = Squeeze(x) y = Sigmoid(s) }"
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}'))
    for node in model.graph:
        node.outputs[0].shape = ir.Shape([])
    assert name_squeezed_axes(model)
    infer_shapes(model)
    assert [str(value.shape) for node in model.graph for value in node.outputs] == ["[n]", "[n]"]
