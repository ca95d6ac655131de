"""Every gradient rule against torch and by finite differences."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, parser
from onnx_ir import to_proto
from torch.nn import functional

from edgepeft_export.autodiff import differentiate
from edgepeft_export.autodiff.registry import NO_GRADIENT, RULES, NoGradientForCase
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.graph.definitions import DEFINITIONS
from edgepeft_export.graph.edit import fix_names
from edgepeft_export.opset import OPSET, assert_runs_on_devices
from tests.autodiff import rule_cases
from tests.autodiff.rule_cases.case import Array, Case, draw, forward_model, from_torch, loss_weights, to_ir, trains
from tests.support.onnx_runs import session

CASES = rule_cases.CASES
QUANTIZED = {"edgepeft.Int8MatMul", "edgepeft.FakeQuantize", "com.microsoft.MatMulNBits"}  # in test_quantized_rules.py
LOOPS = {
    "edgepeft.Branch",
    "edgepeft.Map",
    "edgepeft.Repeat",
    "edgepeft.WithGradient",
}  # in test_expansion.py, export/test_attention.py
CLASSICAL = {"ai.onnx.ml.ArrayFeatureExtractor"}  # in the node tests
FUSED = {  # in forward/onnx_source/test_fused.py
    "SimplifiedLayerNormalization",
    "com.microsoft.Attention",
    "com.microsoft.BiasGelu",
    "com.microsoft.EmbedLayerNormalization",
    "com.microsoft.FastGelu",
    "com.microsoft.FusedConv",
    "com.microsoft.FusedGemm",
    "com.microsoft.FusedMatMul",
    "com.microsoft.Gelu",
    "com.microsoft.MultiHeadAttention",
    "com.microsoft.QuickGelu",
    "com.microsoft.SkipLayerNormalization",
    "com.microsoft.SkipSimplifiedLayerNormalization",
}
LINEAR = {  # in forward/onnx_source/test_outputs.py
    "ai.onnx.ml.LinearClassifier",
    "ai.onnx.ml.LinearRegressor",
    "ai.onnx.ml.Normalizer",
    "ai.onnx.ml.Scaler",
}
LABELS = [f"{number}-{case.label()}"[:110] for number, case in enumerate(CASES)]


def feeds(case: Case, dtype: type, weights: list[Array], live: set[str]) -> dict[str, Array]:
    arrays = {f"i{index}": array for index, array in enumerate(draw(case, dtype)) if array is not None}
    arrays |= {f"w{index}": weight for index, weight in enumerate(weights)}
    return {name: array for name, array in arrays.items() if name in live}


def run(case: Case, dtype: type, weights: list[Array], model: ModelProto, names: list[str]) -> list[Array]:
    made = session(model)
    results: list[Array] = made.run(names, feeds(case, dtype, weights, {value.name for value in made.get_inputs()}))
    return results


def gradients(case: Case, dtype: type, naming: str, weights: list[Array]) -> list[Array]:
    """Return the gradients of the trained inputs, by differentiating the ONNX graph."""
    model = to_ir(forward_model(case, dtype, naming))
    by_name = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    targets = [by_name[f"i{index}"] for index in trains(case)]
    found = differentiate(model.graph, by_name["loss"], targets)
    lower(model)
    if case.opset == OPSET and dtype is np.float32:
        assert_runs_on_devices(model)
    arrays = draw(case, dtype)
    results = []
    for index, target in zip(trains(case), targets, strict=True):
        if target not in found:
            results.append(np.zeros_like(arrays[index]))
            continue
        model.graph.outputs[:] = [found[target]]
        fix_names(model)
        (result,) = run(case, dtype, weights, to_proto(model), [str(found[target].name)])
        results.append(result)
    return results


@cache
def runs_in_double(op: str) -> bool:
    """Whether stock ONNX Runtime has the operators of an operator's cases, forward and backward, for float64."""
    case = next(case for case in CASES if case.op == op)
    try:
        outputs, _ = from_torch(case, np.float64, None)
        gradients(case, np.float64, "static", loss_weights([output.shape for output in outputs], np.float64))
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error) or "INVALID_GRAPH" in str(error):
            return False
        raise
    return True


def test_every_rule_has_a_case_and_every_case_a_rule() -> None:
    """What no case tries is not to be trusted; rules of quantized weights have tests of their own."""
    assert {case.op for case in CASES} | QUANTIZED | LOOPS | CLASSICAL | FUSED | LINEAR == set(RULES) | set(DEFINITIONS)


def test_operators_have_a_rule_or_a_reason() -> None:
    """The networks people export need about a hundred operators."""
    assert len(RULES) >= 60
    assert all(NO_GRADIENT.values())


@pytest.mark.parametrize("naming", ["static", "symbolic", "named"])
@pytest.mark.parametrize("case", CASES, ids=LABELS)
def test_gradient_is_that_of_torch(case: Case, naming: str) -> None:
    """Outputs and gradients in float32 are torch's, whatever is known of the shapes."""
    outputs, expected = from_torch(case, np.float32, None)
    weights = loss_weights([output.shape for output in outputs], np.float32)
    for target, (have, want) in enumerate(zip(gradients(case, np.float32, naming, weights), expected, strict=True)):
        assert have.dtype == want.dtype
        assert have.shape == want.shape
        np.testing.assert_allclose(have, want, rtol=2e-4, atol=2e-5, err_msg=f"target {target}")


@pytest.mark.parametrize("case", CASES, ids=LABELS)
def test_operator_is_torchs_function(case: Case) -> None:
    """The torch function a case is compared with is the operator."""
    outputs, _ = from_torch(case, np.float32, None)
    weights = loss_weights([output.shape for output in outputs], np.float32)
    model = forward_model(case, np.float32, "static")
    names = [
        value.name for value in model.graph.output if value.type.tensor_type.elem_type == 1 and value.name != "loss"
    ]
    for have, want in zip(run(case, np.float32, weights, model, names), outputs, strict=True):
        np.testing.assert_allclose(have, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.differences], ids=Case.label)
def test_gradient_is_the_derivative_of_the_loss(case: Case) -> None:
    """Central differences of the loss along random directions agree, in float64 where there are kernels for it."""
    double = not case.float32_only and runs_in_double(case.op)
    dtype, step, tolerance = (np.float64, 1e-6, 1e-6) if double else (np.float32, 2e-3, 2e-2)
    outputs, _ = from_torch(case, dtype, None)
    weights = loss_weights([output.shape for output in outputs], dtype)
    loss = session(forward_model(case, dtype, "static"))
    live = {value.name for value in loss.get_inputs()}
    random = np.random.default_rng(3)
    for index, gradient in zip(trains(case), gradients(case, dtype, "static", weights), strict=True):
        here = feeds(case, dtype, weights, live)
        direction: Array = random.choice((-1.0, 1.0), gradient.shape).astype(dtype)
        moved = [np.asarray(here[f"i{index}"] + direction * sign * step, dtype=dtype) for sign in (1, -1)]
        sides = [loss.run(["loss"], here | {f"i{index}": values})[0] for values in moved]
        derivative = (float(sides[0]) - float(sides[1])) / (2 * step)
        scale = max(float(np.abs(gradient).sum()), 1.0)
        assert abs(derivative - float((gradient * direction).sum())) <= tolerance * scale


@pytest.mark.parametrize(("case", "reason"), rule_cases.REFUSED)
def test_what_a_rule_does_not_cover_is_refused_with_a_way_out(case: Case, reason: str) -> None:
    """A use of an operator that its rule does not cover is an error that names op, node, reason and way out."""
    model = to_ir(forward_model(case, np.float32, "symbolic"))
    by_name = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    with pytest.raises(NoGradientForCase) as caught:
        differentiate(model.graph, by_name["loss"], [by_name[f"i{index}"] for index in trains(case)])
    assert caught.value.code == "no-gradient-for-case"
    assert f"op {case.op} (node node)" in caught.value.message
    assert reason in caught.value.message
    assert caught.value.hint


def test_repeated_indices_are_all_added_on_several_threads() -> None:
    """An embedding read thousands of times at few rows gets every contribution, whatever the threads do."""
    graph = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]> g (float[6, 64] table, int64[n] ids) => (float loss) {
          rows = Gather(table, ids)
          loss = ReduceSum<keepdims=0>(rows)
        }"""
    )
    model = to_ir(graph)
    table = model.graph.inputs[0]
    model.graph.outputs[:] = list(differentiate(model.graph, model.graph.outputs[0], [table]).values())
    fix_names(model)
    ids = np.random.default_rng(0).integers(0, 3, 4096)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 4
    made = ort.InferenceSession(to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    for _ in range(5):
        (gradient,) = made.run(None, {"table": np.zeros((6, 64), np.float32), "ids": ids})
        np.testing.assert_array_equal(gradient, np.repeat(np.bincount(ids, minlength=6)[:, None], 64, 1))


def test_pooling_gradients_survive_onnxruntimes_layout() -> None:
    """After a convolution of 16 channels ONNX Runtime would change the layout that the indices of MaxPool count in."""
    random = np.random.default_rng(0)
    image = random.normal(size=(2, 16, 9, 9)).astype(np.float32)
    kernel = random.normal(size=(16, 16, 3, 3)).astype(np.float32)
    graph = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]> g (float[n, 16, h, w] x, float[16, 16, 3, 3] k) => (float loss) {
          made = Conv(x, k)
          kept = Relu(made)
          pooled = MaxPool<kernel_shape=[3, 3], strides=[2, 2]>(kept)
          squared = Mul(pooled, pooled)
          loss = ReduceSum<keepdims=0>(squared)
        }"""
    )
    model = to_ir(graph)
    found = differentiate(model.graph, model.graph.outputs[0], list(model.graph.inputs))
    model.graph.outputs[:] = list(found.values())
    fix_names(model)
    have = session(to_proto(model)).run(None, {"x": image, "k": kernel})
    tensors = [torch.from_numpy(array).requires_grad_() for array in (image, kernel)]
    pooled = functional.max_pool2d(torch.relu(functional.conv2d(*tensors)), 3, 2)
    for gradient, expected in zip(have, torch.autograd.grad(pooled.square().sum(), tensors), strict=True):
        np.testing.assert_allclose(gradient, expected.numpy(), rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 2)])
def test_of_equal_maxima_the_first_gets_the_gradient(kernel: tuple[int, int]) -> None:
    """As in PyTorch: images of few values, of nothing but zeros, and with minus infinity; no indices are needed."""
    height, width = kernel
    graph = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]> g (float[n, c, 12, 8] x, float[n, c, h, w] s) => (float loss) {{
          pooled = MaxPool<kernel_shape=[{height}, {width}], strides=[{height}, {width}]>(x)
          scaled = Mul(pooled, s)
          loss = ReduceSum<keepdims=0>(scaled)
        }}"""
    )
    model = to_ir(graph)
    found = differentiate(model.graph, model.graph.outputs[0], list(model.graph.inputs)[:1])
    model.graph.outputs[:] = list(found.values())
    fix_names(model)
    assert "ScatterElements" not in {node.op_type for node in model.graph}
    run, random = session(to_proto(model)), np.random.default_rng(0)
    images = random.integers(-1, 2, (4, 3, 12, 8)).astype(np.float32)
    images[1], images[2, 0], images[2, 1, :6] = 0, -np.inf, -np.inf
    scale = random.normal(size=(4, 3, 12 // height, 8 // width)).astype(np.float32)
    (gradient,) = run.run(None, {"x": images, "s": scale})
    x = torch.from_numpy(images).requires_grad_()
    functional.max_pool2d(x, kernel).backward(torch.from_numpy(scale))
    np.testing.assert_array_equal(gradient, x.grad.numpy())


def test_a_window_larger_than_a_free_image_averages_its_pixels() -> None:
    """An image of two rows under a window of three: ONNX Runtime divides by the elements that exist."""
    graph = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]> g (float[n, 2, h, w] x) => (float loss) {
          pooled = AveragePool<kernel_shape=[3, 2], strides=[3, 2]>(x)
          squared = Mul(pooled, pooled)
          loss = ReduceSum<keepdims=0>(squared)
        }"""
    )
    model, forward = to_ir(graph), session(graph)
    found = differentiate(model.graph, model.graph.outputs[0], list(model.graph.inputs))
    model.graph.outputs[:] = list(found.values())
    fix_names(model)
    for rows in (2, 3, 4):
        image = np.random.default_rng(rows).normal(size=(1, 2, rows, 4)).astype(np.float32)
        (gradient,) = session(to_proto(model)).run(None, {"x": image})
        step = np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
        ahead, back = (forward.run(None, {"x": image + np.float32(size) * step})[0] for size in (1e-2, -1e-2))
        assert float(ahead - back) / 2e-2 == pytest.approx(float((gradient * step).sum()), rel=1e-3)
