"""Nodes without a gradient rule are written as others: functions, branches, loops."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from edgepeft_export.autodiff import NoGradientForCase, differentiate, missing_rules
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
          else_branch = e () => (a, b) { a = Neg(w)\n b = Mul(w, three) }>
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
    numbers = "float limit = {-100}, float three = {3}, float hundred = {100}, float far = {-1000}, float unit = {1}"
    numbers += ", float twenty = {-980}, float tenth = {0.1}, bool yes = {1}, int64 many = {120}, int64 often = {100}"
    constants = f"{numbers}, int64 two = {{2}}, int64[1] zero = {{0}}, int64[1] one = {{1}}"
    text = f"g (float[2,3,4] x, int64[2,4] labels) => (float l) <{constants}> {{ {body} }}"
    return parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}')


@pytest.mark.parametrize("body", [*FUNCTIONS.values(), *CONTROL_FLOW.values()], ids=[*FUNCTIONS, *CONTROL_FLOW])
def test_the_gradient_is_the_derivative_of_the_file(body: str) -> None:
    """Central differences of the unchanged graph agree with the gradient of what it became."""
    check_derivative(body)


def check_derivative(body: str) -> None:
    """Central differences of a file along random directions, against the gradient of what it became."""
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


LOOPS = {
    "loop": """
        m = Mul(x, x)
        last, each = Loop(many, yes, x) <body = b (int64 i, bool go, float[2,3,4] s) => (on, next, kept) {
          on = Identity(go)
          f = Cast<to=1>(i)
          g = Div(f, hundred)
          t = Sub(s, g)
          r = Mul(t, x)
          next = Tanh(r)
          kept = Mul(next, m)
        }>""",
    "open loop": """
        none = Identity(far)
        last, count, each = Loop(many, yes, x, none) <
          body = b (int64 i, bool go, float[2,3,4] s, float c) => (on, next, more, kept) {
          more = Add(c, unit)
          on = Less(more, twenty)
          next = Cos(s)
          kept = Mul(next, x)
        }>""",
    "no iteration": """
        sum = ReduceSum<keepdims=0>(x)
        never = Less(sum, far)
        last, each = Loop(many, never, x) <body = b (int64 i, bool go, float[2,3,4] s) => (on, next, kept) {
          on = Identity(go)
          next = Sin(s)
          kept = Identity(next)
        }>""",
    "scan": """
        sums = ReduceSum<keepdims=0>(x, zero)
        first = Slice(sums, zero, one, zero)
        wide = Concat<axis=1>(LONG)
        last, each = Scan(first, wide, wide) <
          num_scan_inputs = 2, scan_input_axes = [1, -2], scan_input_directions = [1, 0],
          scan_output_axes = [-1], scan_output_directions = [1],
          body = b (float[1,4] s, float[2,4] v, float[2,4] u) => (next, kept) {
            a = Sin(v)
            p = Mul(a, s)
            q = Mul(p, first)
            r = ReduceMean<keepdims=1>(q, zero)
            next = Add(r, s)
            kept = Mul(v, u)
          }>""".replace("LONG", ", ".join(["x"] * 40)),
    "nested": """
        last, each = Loop(many, yes, x) <body = b (int64 i, bool go, float[2,3,4] s) => (on, next, kept) {
          on = Identity(go)
          other = Sigmoid(s)
          next, inner = Loop(often, go, s) <body = c (int64 j, bool on2, float[2,3,4] z) => (on3, after, made) {
            on3 = Identity(on2)
            w = Mul(z, other)
            v = Mul(w, x)
            h = Mul(v, tenth)
            k = Sub(z, h)
            after = Sin(k)
            made = Identity(w)
          }>
          kept = ReduceMean<keepdims=0>(inner)
        }>""",
}


@pytest.mark.parametrize("body", LOOPS.values(), ids=LOOPS)
def test_the_gradient_of_a_loop_is_its_derivative(body: str) -> None:
    """Loops that stay loops: the reverse one computes what central differences of the file do."""
    total = "total = ReduceSum<keepdims=0>(last)\n rest = ReduceSum<keepdims=0>(each)\n l = Add(total, rest)"
    check_derivative(f"{body}\n{total}")


UNKNOWN = {
    "If": "sum = ReduceSum<keepdims=0>(x)\n flag = Greater(sum, limit)\n y = If(flag) "
    "<then_branch = t () => (a) { a = Neg(x) }, else_branch = e () => (a) { p = Relu(x)\n a = Unknown(p) }>",
    "Loop": "count = Size(x)\n y = Loop(count, yes, x) <body = b (int64 i, bool go, float[2,3,4] s) => (on, next) "
    "{ on = Identity(go)\n next = Unknown(s) }>",
}


@pytest.mark.parametrize(("op", "body"), UNKNOWN.items())
def test_what_no_gradient_can_cross_is_named(op: str, body: str) -> None:
    """A branch and a loop with an operator that has no rule."""
    model = ir.from_proto(_model(f"{body}\n l = ReduceSum<keepdims=0>(y)"))
    model.graph.inputs[0].shape = ir.Shape([2, "n", 4])
    (gap,) = missing_rules(model.graph, model.graph.outputs[0], [model.graph.inputs[0]])
    assert gap.op_type == f"Unknown in {op}"


def test_a_growing_state_of_an_open_loop_is_refused() -> None:
    """No tensor has the states of all iterations; a loop of known length is written as its iterations."""
    body = """
        y = Loop(COUNT, yes, x) <body = b (int64 i, bool go, float[a,3,4] s) => (on, next) {
          on = Identity(go)
          next = Concat<axis=0>(s, x)
        }>
        z = Mul(y, y)
        l = ReduceSum<keepdims=0>(z)"""
    check_derivative(body.replace("COUNT", "two"))
    model = ir.from_proto(_model(f"count = Size(x)\n {body.replace('COUNT', 'count')}"))
    model.graph.inputs[0].shape = ir.Shape([2, "n", 4])
    with pytest.raises(NoGradientForCase, match="changes its size"):
        missing_rules(model.graph, model.graph.outputs[0], [model.graph.inputs[0]])
