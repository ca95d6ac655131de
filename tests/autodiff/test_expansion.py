"""Nodes without a gradient rule are written as others: functions, branches, loops."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from edgepeft_export.autodiff import differentiate, missing_rules
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.graph.edit import fix_names
from tests.support.onnx_runs import session

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
LABELS = np.array([[0, 2, 1, 1], [2, 2, 0, 1]])

FUNCTIONS = {
    "loss": 'l = SoftmaxCrossEntropyLoss<reduction="sum", ignore_index=1>(x, labels)',
    "norm": "n = MeanVarianceNormalization<axes=[0, 2]>(x)\n y = Mul(n, x)\n l = ReduceSum<keepdims=0>(y)",
}
CONTROL_FLOW = {
    "branch": """
        shape = Shape(x)
        rank = Size(shape)
        flag = Greater(rank, two)
        y = If(flag) <then_branch = t () => (a) { a = Mul(x, x) }, else_branch = e () => (a) { a = Neg(x) }>
        l = ReduceSum<keepdims=0>(y)""",
    "outer value": """
        y = If(yes) <then_branch = t () => (a) { a = Identity(x) }, else_branch = e () => (a) { a = Neg(x) }>
        z = Mul(y, y)
        l = ReduceSum<keepdims=0>(z)""",
    "open branch": """
        w = Exp(x)
        sum = ReduceSum<keepdims=0>(x)
        flag = Greater(sum, limit)
        y, z = If(flag) <
          then_branch = t () => (a, b) { a = Mul(w, x)\n b = Identity(x) },
          else_branch = e () => (a, b) { a = Neg(w)\n b = Mul(w, many) }>
        q = Mul(y, z)
        l = ReduceSum<keepdims=0>(q)""",
    "loop": """
        last, each = Loop(two, yes, x) <body = b (int64 i, bool go, float[2,3,4] s) => (on, next, kept) {
          on = Identity(go)
          next = Mul(s, x)
          kept = Tanh(s)
        }>
        total = ReduceSum<keepdims=0>(last)
        rest = ReduceSum<keepdims=0>(each)
        l = Add(total, rest)""",
    "scan": """
        sums = ReduceSum<keepdims=0>(x, zero)
        first = Slice(sums, zero, one, zero)
        last, each = Scan(first, x) <
          num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1], scan_output_axes = [2],
          body = b (float[1,4] s, float[2,4] v) => (next, kept) {
            w = Mul(v, s)
            r = ReduceSum<keepdims=1>(w, zero)
            next = Tanh(r)
            kept = Mul(v, v)
          }>
        total = ReduceSum<keepdims=0>(last)
        rest = ReduceSum<keepdims=0>(each)
        l = Sub(total, rest)""",
}


CONTROL_FLOW["other branch"] = CONTROL_FLOW["open branch"].replace("Greater", "Less")


def _model(body: str) -> onnx.ModelProto:
    numbers = "float limit = {-100}, float many = {3}, bool yes = {1}"
    constants = f"{numbers}, int64 two = {{2}}, int64[1] zero = {{0}}, int64[1] one = {{1}}"
    text = f"g (float[2,3,4] x, int64[2,4] labels) => (float l) <{constants}> {{ {body} }}"
    return parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}')


@pytest.mark.parametrize("body", [*FUNCTIONS.values(), *CONTROL_FLOW.values()], ids=[*FUNCTIONS, *CONTROL_FLOW])
def test_the_gradient_is_the_derivative_of_the_file(body: str) -> None:
    """Central differences of the unchanged graph agree with the gradient of what it became."""
    forward = session(_model(body))
    model = ir.from_proto(_model(body))
    model.graph.outputs.extend(differentiate(model.graph, model.graph.outputs[0], [model.graph.inputs[0]]).values())
    lower(model)
    fix_names(model)
    fed = {value.name for value in forward.get_inputs()}
    feeds = {name: array for name, array in {"x": X, "labels": LABELS}.items() if name in fed}
    loss, gradient = session(ir.to_proto(model)).run(None, {"x": X, "labels": LABELS})
    np.testing.assert_allclose(loss, forward.run(None, feeds)[0], rtol=1e-5)
    random = np.random.default_rng(1)
    for _ in range(4):
        direction = random.choice((-1.0, 1.0), X.shape).astype(np.float32)
        sides = [forward.run(None, feeds | {"x": X + np.float32(sign * 1e-3) * direction})[0] for sign in (1, -1)]
        assert float(sides[0] - sides[1]) / 2e-3 == pytest.approx(
            float((gradient * direction).sum()), rel=1e-2, abs=1e-2
        )


UNKNOWN = {
    "If": "sum = ReduceSum<keepdims=0>(x)\n flag = Greater(sum, half)\n y = If(flag) "
    "<then_branch = t () => (a) { a = Neg(x) }, else_branch = e () => (a) { d = Det(m)\n a = Mul(x, d) }>",
    "Loop": "y = Loop(many, yes, x) <body = b (int64 i, bool go, float[2,3,4] s) => (on, next) "
    "{ on = Identity(go)\n next = Mul(s, x) }>",
}


@pytest.mark.parametrize(("op", "body"), UNKNOWN.items())
def test_what_is_open_until_the_run_is_named(op: str, body: str) -> None:
    """A branch with an operator that has no rule, and a loop of 10,000 iterations."""
    constants = "int64 many = {10000}, bool yes = {1}, float half = {0.5}, float[1,1] m = {2}"
    text = f"g (float[2,3,4] x) => (float l) <{constants}> {{ {body}\n l = ReduceSum<keepdims=0>(y) }}"
    model = ir.from_proto(parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}'))
    assert [gap.op_type for gap in missing_rules(model.graph, model.graph.outputs[0], model.graph.inputs)] == [op]
