"""Gradients that are zero for part of the elements: exact on the kinks, without selections of our own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from onnx import parser
from onnx_ir import to_proto
from onnx_ir.passes.common import NameFixPass
from torch import Tensor
from torch.nn import functional

from edgepeft_export.autodiff import differentiate
from tests.autodiff.rule_cases.case import Array, to_ir
from tests.support.onnx_runs import session

KINKS = np.float32([-1e30, -3.5, -1.0, -1e-7, 0.0, 1e-7, 0.5, 2.0, 5.9999995, 6.0, 7.0, 1e30])


def gradient(body: str, x: Array, inputs: str = "") -> tuple[Array, list[str]]:
    """The gradient of the sum of y for x, and the operators that the backward adds."""
    sizes = ", ".join(str(size) for size in x.shape)
    model = to_ir(
        parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : 20]> g (float[{sizes}] x{inputs}) => (float loss) '
            f"{{ {body} loss = ReduceSum<keepdims=0>(y) }}"
        )
    )
    before = len(model.graph)
    found = differentiate(model.graph, model.graph.outputs[0], [model.graph.inputs[0]])
    model.graph.outputs[:] = list(found.values())
    added = [node.op_type for node in list(model.graph)[before:]]
    NameFixPass()(model)
    return session(to_proto(model)).run(None, {"x": x})[0], added


@pytest.mark.parametrize(
    ("body", "oracle"),
    [
        ("y = Relu(x)", torch.relu),
        ("y = LeakyRelu<alpha = 0.3>(x)", lambda x: functional.leaky_relu(x, 0.3)),
        ("y = LeakyRelu<alpha = -0.5>(x)", lambda x: functional.leaky_relu(x, -0.5)),
        ("y = Elu(x)", functional.elu),
        ("y = Elu<alpha = 0.4>(x)", lambda x: functional.elu(x, 0.4)),
        ("y = Selu(x)", functional.selu),
        ("y = Celu<alpha = 2.0>(x)", lambda x: functional.celu(x, 2.0)),
        ("y = Abs(x)", torch.abs),
        ("w = Constant<value_floats = [0.2]>() y = PRelu(x, w)", lambda x: functional.prelu(x, torch.tensor([0.2]))),
        (
            "a = Constant<value_float = 0.0>() b = Constant<value_float = 6.0>() y = Clip(x, a, b)",
            lambda x: x.clamp(0, 6),
        ),
    ],
)
def test_masks_are_exact_on_and_beside_the_kinks(body: str, oracle: Callable[[Tensor], Tensor]) -> None:
    """Masks are products with steps, of the same numbers as torch's selections, also for very large numbers."""
    have, added = gradient(body, KINKS)
    x = torch.from_numpy(KINKS).requires_grad_()
    (want,) = torch.autograd.grad(oracle(x).sum(), x)
    np.testing.assert_allclose(have, want.numpy(), rtol=1e-5)
    assert "Where" not in added


def test_relu6_after_a_convolution_reads_only_its_output() -> None:
    """Its derivative is that of torch's relu6, which is 0 on both bounds; the convolution's result need not be kept."""
    x = KINKS[None, None, None]
    bounds = "a = Constant<value_float = 0.0>() b = Constant<value_float = 6.0>() "
    kernel = "k = Constant<value = float[1, 1, 1, 1] {1.0}>() c = Conv(x, k) "
    have, added = gradient(kernel + bounds + "y = Clip(c, a, b)", x)
    tensor = torch.from_numpy(x).requires_grad_()
    (want,) = torch.autograd.grad(functional.relu6(tensor).sum(), tensor)
    np.testing.assert_array_equal(have, want.numpy())
    assert "Equal" not in added


def test_the_gradient_of_a_models_own_where_stops_infinity() -> None:
    """Models protect themselves by a Where: sqrt's infinite derivative at 0 does not reach the side that lost."""
    x = np.float32([-1.0, 4.0, 0.25])
    body = "z = Constant<value_float = 0.0>() m = Greater(x, z) s = Where(m, x, z) y = Sqrt(s)"
    have, _ = gradient(body, x)
    tensor = torch.from_numpy(x).requires_grad_()
    (want,) = torch.autograd.grad(torch.where(tensor > 0, tensor, 0.0).sqrt().sum(), tensor)
    np.testing.assert_allclose(have, want.numpy(), rtol=1e-5)
    assert have[0] == 0
