"""The allow-list: the operators of the oldest supported onnxruntime's CPU build, and no others."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from edgepeft_export.opset import OPSET, UnsupportedOperator, assert_runs_on_devices


def _model(body: str, *, opset: int = OPSET, domains: str = "") -> ir.Model:
    text = f"""
        <ir_version: 10, opset_import: ["": {opset}{domains}]>
        g (float[2, 4] x, bool c) => (float[2, 4] y) {{ {body} }}
    """
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    "body",
    [
        "y = Tanh(x)",
        "y = Gelu(x)",
        "y = Constant <value = float[2, 4] {1, 2, 3, 4, 5, 6, 7, 8}> ()",
        "y = If (c) <then_branch = t () => (float[2, 4] a) { a = Relu(x) },"
        " else_branch = e () => (float[2, 4] b) { b = Neg(x) }>",
    ],
    ids=["kernel", "function", "constant", "branches"],
)
def test_what_stock_onnxruntime_runs_is_allowed(body: str) -> None:
    """Operators with a kernel, constants, branches, and operators that ONNX defines by others; and they do load."""
    model = _model(body)
    assert_runs_on_devices(model)
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())


@pytest.mark.parametrize(
    ("body", "domains", "op_type"),
    [
        ("y = Tangens <z = 1> (x)", "", "Tangens"),
        ("y = ai.onnx.preview.training.Adagrad(x)", ', "ai.onnx.preview.training": 1', "Adagrad"),
        ("y = com.microsoft.SoftmaxGrad_13(x)", ', "com.microsoft": 1', "com.microsoft.SoftmaxGrad_13"),
        ("y = com.example.Secret(x)", ', "com.example": 1', "com.example.Secret"),
        ("y = Shrunk(x)", "", "Shrunk"),
    ],
)
def test_what_it_does_not_run_is_named(body: str, domains: str, op_type: str) -> None:
    """Unknown operators, those of training builds and those of others' domains are refused by name."""
    with pytest.raises(UnsupportedOperator) as failure:
        assert_runs_on_devices(_model(body, domains=domains))
    assert failure.value.code == "unsupported-operator"
    assert op_type in failure.value.message
    assert failure.value.hint is not None


def test_a_branch_is_looked_into() -> None:
    """An operator inside an If counts as one outside."""
    body = (
        "y = If (c) <then_branch = t () => (float[2, 4] a) { a = com.example.Secret(x) },"
        " else_branch = e () => (float[2, 4] b) { b = Neg(x) }>"
    )
    with pytest.raises(UnsupportedOperator, match="Secret"):
        assert_runs_on_devices(_model(body, domains=', "com.example": 1'))


def test_the_node_is_named() -> None:
    """The error leads to the layer, by the node's name."""
    model = _model("y = com.example.Secret(x)", domains=', "com.example": 1')
    next(iter(model.graph)).name = "/encoder/layer.3/Secret"
    with pytest.raises(UnsupportedOperator, match=r"/encoder/layer\.3/Secret"):
        assert_runs_on_devices(model)


@pytest.mark.parametrize(
    ("body", "runs"),
    [
        ("d = Cast <to = 11> (x)  e = Mul(d, d)  y = Cast <to = 1> (e)", True),
        ("d = Cast <to = 16> (x)  e = Mul(d, d)  y = Cast <to = 1> (e)", False),
        ("d = Cast <to = 5> (x)  e = Mul(d, d)  y = Cast <to = 1> (e)", False),
        ("d = Cast <to = 11> (x)  e = Relu(d)  f = Transpose(d)  g = MatMul(e, f)  y = Cast <to = 1> (g)", True),
        ("d = Cast <to = 6> (x)  e = Sqrt(d)  y = Cast <to = 1> (e)", False),
        ("s = Shape(x)  e = Mul(s, s)  y = Cast <to = 1> (e)", True),
        ("s = Shape(x)  z = ConstantOfShape <value = int16[1] {1}> (s)  e = Mul(z, z)  y = Cast <to = 1> (e)", False),
        ("d = Cast <to = 11> (x)  e = com.microsoft.BiasGelu(d, d)  y = Cast <to = 1> (e)", False),
        (
            "y = If (c) <then_branch = t () => (float[2, 4] a) { d = Cast <to = 16> (x)  e = Mul(d, d)"
            "  a = Cast <to = 1> (e) }, else_branch = e () => (float[2, 4] b) { b = Neg(x) }>",
            False,
        ),
    ],
)
def test_kernels_are_for_types(body: str, runs: bool) -> None:
    """A node passes where the registry has a kernel for its element types, followed through casts and branches."""
    model = _model(body, domains=', "com.microsoft": 1')
    if runs:
        assert_runs_on_devices(model)
        onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
        return
    with pytest.raises(UnsupportedOperator) as failure:
        assert_runs_on_devices(model)
    assert " of " in failure.value.message and failure.value.hint is not None
