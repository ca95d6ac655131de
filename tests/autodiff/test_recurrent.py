"""Gradients of recurrent operators where a graph is not as torch exports it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from onnx_ir import to_proto
from onnx_ir.passes.common import NameFixPass

from edgepeft_export.autodiff import differentiate
from edgepeft_export.opset import UnsupportedOperator, assert_runs_on_devices
from tests.autodiff.rule_cases.case import to_ir
from tests.autodiff.rule_cases.recurrent import gru_step, lstm_step, network
from tests.support.onnx_runs import session


def last_state(op: str) -> ir.Model:
    """An operator whose only output is its last hidden state; the loss is its sum."""
    gates = 4 if op == "LSTM" else 3
    shapes = {"x": ["t", "n", 3], "w": [1, 2 * gates, 3], "r": [1, 2 * gates, 2]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    nodes = [
        helper.make_node(op, list(shapes), ["", "last"], hidden_size=2),
        helper.make_node("ReduceSum", ["last"], ["loss"], keepdims=0),
    ]
    loss = helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "last", inputs, [loss])
    return to_ir(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_an_operator_of_one_state_returns_all_states(op: str) -> None:
    """The gradient needs the states of all steps, which exporters leave out where nothing reads them."""
    model = last_state(op)
    found = differentiate(model.graph, model.graph.outputs[0], list(model.graph.inputs))
    model.graph.outputs[:] = list(found.values())
    NameFixPass()(model)
    random = np.random.default_rng(0)
    gates = 4 if op == "LSTM" else 3
    shapes = {"x": (5, 3, 3), "w": (1, 2 * gates, 3), "r": (1, 2 * gates, 2)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays.values()]
    run = network(lstm_step if op == "LSTM" else gru_step(False), "forward", (0, 1, 2))
    expected = torch.autograd.grad(run(*tensors)[1].sum(), tensors)
    for have, want in zip(session(to_proto(model)).run(None, arrays), expected, strict=True):
        np.testing.assert_allclose(have, want.numpy(), rtol=2e-4, atol=2e-5)


def test_what_devices_lack_is_found_inside_a_loop() -> None:
    """The list of operators that devices have also applies to the bodies of loops."""
    model = last_state("LSTM")
    differentiate(model.graph, model.graph.outputs[0], list(model.graph.inputs))
    assert_runs_on_devices(model)
    (scan, *_) = [node for node in model.graph if node.op_type == "Scan"]
    body = scan.attributes["body"].as_graph()
    body.append(ir.node("NoSuchOperator", [body.inputs[0]]))
    with pytest.raises(UnsupportedOperator, match="NoSuchOperator"):
        assert_runs_on_devices(model)
