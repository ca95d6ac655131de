"""Products of activations in train graphs read transposed and scaled operands in place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import parser
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from edgepeft_export.autodiff import differentiate
from edgepeft_export.autodiff.pairs import join_pairs
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.passes import fuse_products
from tests.support.onnx_runs import session

HEADS = """
    qh = Transpose<perm = [0, 2, 1, 3]>(q) kh = Transpose<perm = [0, 2, 1, 3]>(k) vh = Transpose<perm = [0, 2, 1, 3]>(v)
    c = Constant<value_float = 0.3>() qs = Mul(qh, c) kt = Transpose<perm = [0, 1, 3, 2]>(kh) s = MatMul(qs, kt)
    p = Softmax(s) y = MatMul(p, vh) t = Mul(y, y) loss = ReduceSum<keepdims = 0>(t)
"""


def _parsed(inputs: str, body: str, outputs: str) -> ir.Model:
    opsets = '["" : 20, "com.microsoft" : 1]'
    text = f"<ir_version: 9, opset_import: {opsets}> g ({inputs}) => ({outputs}) {{ {body} }}"
    proto = parser.parse_model(text)
    return ir.from_proto(proto)


def _run(model: ir.Model, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
    NameFixPass()(model)
    RemoveUnusedNodesPass()(model)
    return list(session(ir.to_proto(model)).run(None, fed))


def test_attentions_gradient_has_one_layout() -> None:
    """Queries, keys and values are transposed once, and so are their gradients, which equal torch's."""
    random = np.random.default_rng(0)
    fed = {name: random.normal(size=(2, 5, 3, 4)).astype(np.float32) for name in "qkv"}
    model = _parsed(", ".join(f"float[2, n, 3, 4] {name}" for name in "qkv"), HEADS, "float loss")
    for value in (output for node in model.graph for output in node.outputs):
        value.dtype = ir.DataType.FLOAT
    infer_shapes(model)
    found = differentiate(model.graph, model.graph.outputs[0], list(model.graph.inputs))
    model.graph.outputs.extend(found[value] for value in model.graph.inputs)
    got = _run(model, fed)[1:]
    counts = [node.op_type for node in model.graph]
    assert counts.count("Transpose") == 6 and counts.count("FusedMatMul") >= 5

    q, k, v = (torch.from_numpy(fed[name]).requires_grad_() for name in "qkv")
    qh, kh, vh = (value.transpose(1, 2) for value in (q, k, v))
    ((torch.softmax(0.3 * qh @ kh.transpose(-1, -2), -1) @ vh) ** 2).sum().backward()
    for array, value in zip(got, (q, k, v), strict=True):
        np.testing.assert_allclose(array, value.grad.numpy(), rtol=2e-4, atol=1e-5)


BODIES = {
    "left": "t = Transpose<perm = [0, 2, 1]>(a) y = MatMul(t, b)",
    "both and a factor": (
        "t = Transpose<perm = [0, 2, 1]>(a) c = Constant<value_float = 3.0>() s = Mul(c, t) "
        "u = Transpose<perm = [0, 2, 1]>(b) y = MatMul(s, u)"
    ),
    "result": "m = MatMul(a, b) y = Transpose<perm = [0, 2, 1]>(m)",
    "result with a factor": (
        "m = MatMul(a, b) c = Constant<value_float = 0.5>() s = Mul(m, c) y = Transpose<perm = [0, 2, 1]>(s)"
    ),
    "twice": "t = Transpose<perm = [0, 2, 1]>(a) w = Transpose<perm = [0, 2, 1]>(t) u = Mul(w, w) y = MatMul(w, b)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_product_is_one_node(body: str) -> None:
    """Transpositions and factors on either side are part of it."""
    random = np.random.default_rng(1)
    fed = {name: random.normal(size=(2, 4, 4)).astype(np.float32) for name in "ab"}
    before = _run(_typed(body), fed)[0]
    model = _typed(body)
    replaced = fuse_products(model.graph, (), ())
    assert all(new.producer() is not None for new in replaced.values())
    np.testing.assert_allclose(_run(model, fed)[0], before, rtol=1e-5, atol=1e-5)
    assert [node.op_type for node in model.graph] == ["FusedMatMul"] or "c = " in body


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm = [1, 0, 2]>(a) y = MatMul(t, b)",
        "c = Mul(a, b) y = MatMul(c, b)",
        "m = MatMul(a, b) t = Transpose<perm = [0, 2, 1]>(m) y = Add(m, t)",
    ],
    ids=["other axes", "no number", "read twice"],
)
def test_other_products_stay(body: str) -> None:
    """What is no swap of the last axes and no number, and products that others read."""
    model = _typed(body)
    fuse_products(model.graph, (), ())
    assert not any(node.op_type == "FusedMatMul" for node in model.graph)


def _typed(body: str) -> ir.Model:
    model = _parsed("float[2, 4, 4] a, float[2, 4, 4] b", body, "float[2, 4, 4] y")
    infer_shapes(model)
    return model


@pytest.mark.parametrize("body", ["s = Sigmoid(x) y = Mul(x, s)", "s = Sigmoid(x) m = Mul(s, x) y = Add(m, s)"])
def test_silus_gradient_does_not_read_its_input(body: str) -> None:
    """It equals torch's, also where the sigmoid has another reader."""
    fed = {"x": np.random.default_rng(2).normal(size=(5, 7)).astype(np.float32)}
    model = _parsed("float[5, 7] x", f"{body} t = Mul(y, y) loss = ReduceSum<keepdims = 0>(t)", "float loss")
    infer_shapes(model)
    found = differentiate(model.graph, model.graph.outputs[0], list(model.graph.inputs))
    model.graph.outputs.extend(found.values())
    gradient = _run(model, fed)[1]
    readers = [node for node in model.graph if model.graph.inputs[0] in node.inputs]
    assert [node.op_type for node in readers] == ["Sigmoid", "Mul"]

    x = torch.from_numpy(fed["x"]).requires_grad_()
    y = torch.nn.functional.silu(x) + ("Add" in body) * torch.sigmoid(x)
    (y * y).sum().backward()
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-4, atol=1e-6)


PAIRS = "t = Transpose<perm = [1, 0]>(a) u = Transpose<perm = [1, 0]>(b) m = MatMul(x, t) n = MatMul(x, u)"


def test_narrow_matrices_that_read_one_tensor_are_one_product() -> None:
    """The gradient reads the tensor once for both, and equals torch's."""
    sizes = {"x": (2, 3, 32), "a": (3, 32), "b": (5, 32)}
    random = np.random.default_rng(3)
    fed = {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    inputs = ", ".join(f"float[{', '.join(map(str, size))}] {name}" for name, size in sizes.items())
    body = f"{PAIRS} p = Mul(m, m) r = ReduceSum<keepdims = 0>(p) s = ReduceSum<keepdims = 0>(n) loss = Add(r, s)"
    model = _parsed(inputs, body, "float loss")
    infer_shapes(model)
    assert join_pairs(model, ["a", "b"])
    found = differentiate(model.graph, model.graph.outputs[0], list(model.graph.inputs))
    model.graph.outputs.extend(found[value] for value in model.graph.inputs)
    got = _run(model, fed)[1:]
    products = [node.op_type for node in model.graph if node.op_type in ("MatMul", "Gemm", "FusedMatMul")]
    assert len(products) == 3

    x, a, b = (torch.from_numpy(array).requires_grad_() for array in fed.values())
    (((x @ a.T) ** 2).sum() + (x @ b.T).sum()).backward()
    for array, value in zip(got, (x, a, b), strict=True):
        np.testing.assert_allclose(array, value.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("trained", "columns", "end"),
    [(["a"], 32, "Concat<axis = -1>(m, n)"), (["a", "b"], 8, "Concat<axis = -1>(m, n)"), (["a", "b"], 32, "Abs(m)")],
    ids=["frozen", "wide", "unread"],
)
def test_other_matrices_stay_apart(trained: list[str], columns: int, end: str) -> None:
    """A frozen matrix would be copied, wide ones gain nothing, and one without influence must not train."""
    inputs = f"float[2, 3, {columns}] x, float[3, {columns}] a, float[5, {columns}] b"
    model = _parsed(inputs, f"{PAIRS} y = {end}", "float[2, 3, k] y")
    infer_shapes(model)
    assert not join_pairs(model, trained)
