"""Gradients across quantized weights and rounded activations, against the matrix that the integers represent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass
from torch.nn import functional

from edgepeft_export.autodiff import differentiate
from edgepeft_export.autodiff.registry import NoGradientForCase
from edgepeft_export.graph.custom_ops import CONTRIB, DOMAIN, FAKE_QUANTIZE, SCORES, int8_matmul, lower
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.rounding import LARGEST_PAIR, STEPS, column_sums, to_int8
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.losses.entropy import Entropy, Weights, lean_scores, terms_of
from edgepeft_export.opset import IR_VERSION, assert_runs_on_devices

RNG = np.random.default_rng(1)
Array = np.ndarray


def _input(graph: ir.Graph, name: str, shape: list[int]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(value)
    return value


class Bench:
    """A graph ``loss = Σ dy · y`` around one operator; ``run`` returns y and the requested gradients."""

    def __init__(self, x: Array, opset: int = 20) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="bench")
        self.emit = Emitter(self.graph)
        self.fed = {"x": x}
        self.x = _input(self.graph, "x", list(x.shape))

    def add(self, name: str, array: Array) -> ir.Value:
        self.fed[name] = array
        return _input(self.graph, name, list(array.shape))

    def run(self, y: ir.Value, dy: Array, *targets: ir.Value) -> list[Array]:
        y.shape, y.dtype = ir.Shape(dy.shape), ir.DataType.FLOAT
        weighted = self.emit.op("Mul", y, self.emit.constant(dy))
        weighted.shape = ir.Shape(dy.shape)
        loss = self.emit.op("ReduceSum", weighted, keepdims=0)
        loss.shape = ir.Shape([])
        gradients = differentiate(self.graph, loss, targets or (self.x,))
        self.graph.outputs.extend([y, *gradients.values()])
        model = ir.Model(self.graph, ir_version=IR_VERSION)
        NameFixPass()(model)
        lower(model)
        assert_runs_on_devices(model)
        return list(ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, self.fed))


def _off(have: Array, want: Array) -> float:
    return float(np.linalg.norm(have - want) / np.linalg.norm(want))


@pytest.mark.parametrize("zero_point", ["none", "scalar", "channel"])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("rounding", ["tensor", "row"])
def test_a_gradient_crosses_an_integer_product(rounding: str, dtype: type, trans_b: int, zero_point: str) -> None:
    """y and dx are those of the float matrix, to the precision of 8-bit activations; the bias gets its own gradient."""
    values = RNG.integers(0, 64, (24, 40)).astype(dtype)  # two of them never pass 128: see PAIR_LIMIT
    offset = {"none": None, "scalar": np.array(30, dtype), "channel": RNG.integers(20, 40, 40).astype(dtype)}[
        zero_point
    ]
    scale, x, bias = (RNG.uniform(0.5, 1.5, size).astype(np.float32) for size in (40, (3, 5, 24), 40))
    bench = Bench(x - 1)
    stored = np.ascontiguousarray(values.T) if trans_b else values
    w, s = bench.emit.stored("w", stored), bench.emit.stored("s", scale)
    z = None if offset is None else bench.emit.stored("z", offset)
    b = bench.add("b", bias)
    y = int8_matmul(bench.emit, bench.x, w, s, z, b, trans_b=trans_b, rounding=rounding, gradient=rounding)
    dy = RNG.normal(size=(3, 5, 40)).astype(np.float32)
    matrix = (values.astype(np.float32) - (0 if offset is None else offset.astype(np.float32))) * scale
    have_y, dx, db = bench.run(y, dy, bench.x, b)
    assert _off(have_y, (x - 1) @ matrix + bias) < 0.02
    assert _off(dx, dy @ matrix.T) < 0.02
    np.testing.assert_allclose(db, dy.sum(axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize("zero_point", ["none", "scalar", "channel"])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_stored_transposed_matrix_is_read(trans_b: int, zero_point: str) -> None:
    """With both layouts there is no Transpose, and y and dx are equal bit for bit."""
    draw = np.random.default_rng(2)
    values, scale = draw.integers(-60, 60, (24, 40)).astype(np.int8), draw.uniform(0.5, 1.5, 40).astype(np.float32)
    offset = {"none": None, "scalar": np.array(3, np.int8), "channel": draw.integers(-4, 4, 40).astype(np.int8)}
    x, dy = draw.normal(size=(3, 5, 24)).astype(np.float32), draw.normal(size=(3, 5, 40)).astype(np.float32)
    stored, found = np.ascontiguousarray(values.T) if trans_b else values, []
    for layouts in (1, 2):
        bench = Bench(x)
        w, s = bench.emit.stored("w", stored), bench.emit.stored("s", scale)
        z = None if zero_point == "none" else bench.emit.stored("z", offset[zero_point])
        t = bench.emit.stored("t", np.ascontiguousarray(stored.T)) if layouts == 2 else None
        found.append(bench.run(int8_matmul(bench.emit, bench.x, w, s, z, None, t, trans_b=trans_b), dy))
        assert sum(node.op_type == "Transpose" for node in bench.graph) == 2 - layouts
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_scaled_rows_of_different_size_keep_their_gradients() -> None:
    """A row a millionth the size of another is rounded away by one scale for all, and kept by one of its own."""
    values, scale = RNG.integers(-60, 60, (16, 32)).astype(np.int8), np.ones(32, np.float32)
    dy = (RNG.normal(size=(4, 32)) * np.array([[1.0], [1e-2], [1e-6], [0.0]])).astype(np.float32)
    wanted = dy @ values.astype(np.float32).T
    found = {}
    for gradient in ("tensor", "row"):
        bench = Bench(RNG.normal(size=(4, 16)).astype(np.float32))
        w, s = bench.emit.stored("w", values), bench.emit.stored("s", scale)
        found[gradient] = bench.run(int8_matmul(bench.emit, bench.x, w, s, gradient=gradient), dy)[1]
    assert _off(found["tensor"][2], wanted[2]) > 0.9
    assert all(_off(found["row"][row], wanted[row]) < 0.02 for row in range(3))
    assert not np.any(found["row"][3])


def test_a_massive_token_does_not_round_the_others_away() -> None:
    """With a scale per row, a first token 3000 times as large as the others leaves them exact to 8 bits."""
    values, scale = RNG.integers(-60, 60, (32, 16)).astype(np.int8), np.ones(16, np.float32)
    x = RNG.normal(size=(2, 6, 32)).astype(np.float32)
    x[:, 0, 5] = 3000
    x[1, 5] = 0
    found, wanted = {}, x @ values.astype(np.float32)
    for rounding in ("tensor", "row"):
        bench = Bench(x)
        w, s = bench.emit.stored("w", values), bench.emit.stored("s", scale)
        y = int8_matmul(bench.emit, bench.x, w, s, rounding=rounding)
        found[rounding] = bench.run(y, np.ones((2, 6, 16), np.float32))[0]
    assert _off(found["tensor"][:, 1:], wanted[:, 1:]) > 0.9
    assert all(_off(found["row"][0, token], wanted[0, token]) < 0.02 for token in range(6))
    assert not np.any(found["row"][1, 5])


def test_rows_of_one_sign_use_the_whole_range() -> None:
    """A zero point per row halves the error of rows of one sign; rows far from zero, or of zeros, are right as well."""
    draw = np.random.default_rng(4)
    matrix = to_int8(draw.normal(size=(48, 16)).astype(np.float32), 1)
    x = draw.normal(size=(4, 32, 48)).astype(np.float32)
    x[0], x[1], x[2, :16], x[2, 16:], x[3, :16] = abs(x[0]), -abs(x[1]), x[2, :16] + 40, x[2, 16:] - 40, 0
    wanted, off = x @ (matrix.values * matrix.scale), {}
    for symmetric in (True, False):
        bench = Bench(x)
        w, s = bench.emit.stored("w", matrix.values), bench.emit.stored("s", matrix.scale)
        sums = None if symmetric else bench.emit.stored("sums", column_sums(matrix.values, matrix.scale, 1))
        y = int8_matmul(bench.emit, bench.x, w, s, None, None, None, sums, rounding="row")
        have, dx = bench.run(y, np.ones((4, 32, 16), np.float32))
        assert _off(dx, np.ones((4, 32, 16)) @ (matrix.values * matrix.scale).T) < 0.02
        assert not np.any(have[3, :16])
        off[symmetric] = [_off(have[block], wanted[block]) for block in range(4)]
    assert all(off[False][block] < 0.65 * off[True][block] for block in (0, 1))
    assert max(off[False]) < 0.02


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(12, 48), (3, 4, 48)])
def test_fine_rows_lose_nothing(shape: tuple[int, ...], bias: bool) -> None:
    """Rounded to 16 bits, rows with a massive element are as exact as float32 nearly; the gradient is that of a row."""
    draw = np.random.default_rng(5)
    matrix = to_int8(draw.normal(size=(48, 16)).astype(np.float32), 1)
    x = draw.normal(size=shape).astype(np.float32)
    x.reshape(-1, 48)[0, 3], x.reshape(-1, 48)[1] = 3000, 0
    added = draw.normal(size=16).astype(np.float32) if bias else np.zeros(16, np.float32)
    bench, found = Bench(x), matrix.values * matrix.scale
    w, s = bench.emit.stored("w", matrix.values), bench.emit.stored("s", matrix.scale)
    b = bench.add("b", added) if bias else None
    dy = np.ones((*shape[:-1], 16), np.float32)
    have, dx = bench.run(int8_matmul(bench.emit, bench.x, w, s, None, b, rounding="fine"), dy)
    assert _off(have.reshape(-1, 16)[1:], (x @ found + added).reshape(-1, 16)[1:]) < 2e-4
    assert _off(have.reshape(-1, 16)[0], (x @ found + added).reshape(-1, 16)[0]) < 1e-4
    assert _off(dx, dy @ found.T) < 0.02


def _saturating(integers: Array, values: Array) -> Array:
    """The product of kernels that add neighbouring products in 16 bits."""
    pairs = integers.astype(np.int64)[..., None] * values.astype(np.int64)
    sums = pairs.reshape(len(integers), -1, 2, values.shape[1]).sum(axis=2)
    return np.clip(sums, -(2**15), 2**15 - 1).sum(axis=1)


@pytest.mark.parametrize("zero_points", [False, True])
def test_rounded_rows_of_extremes_do_not_saturate(zero_points: bool) -> None:
    """The largest activations times the largest pairs: no pair of products passes 16 bits, and the result is exact."""
    half = LARGEST_PAIR // 2
    values = np.tile(np.array([[half], [half], [-half], [-half]], np.int8), (8, 16))
    signs = np.where(values[:, :1].T > 0, 1.0, -1.0)
    x = np.concatenate([np.ones((1, 32)), -np.ones((1, 32)), signs, -signs, np.maximum(signs, 0)]).astype(np.float32)
    bench = Bench(x)
    w, s = bench.emit.stored("w", values), bench.emit.stored("s", np.ones(16, np.float32))
    sums = bench.emit.stored("sums", values.sum(axis=0, dtype=np.float32)) if zero_points else None
    y = int8_matmul(bench.emit, bench.x, w, s, None, None, None, sums, rounding="row")
    (have, _), model = bench.run(y, np.ones((len(x), 16), np.float32)), ir.Model(bench.graph, ir_version=IR_VERSION)
    np.testing.assert_allclose(have, x @ values.astype(np.float32), rtol=1e-2, atol=1e-1)
    quantize = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    model.graph.outputs[:] = [node.outputs[0] for node in quantize]
    for integers in ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, bench.fed):
        if integers.shape == x.shape:
            exact = integers.astype(np.int64) @ values.astype(np.int64)
            np.testing.assert_array_equal(_saturating(integers, values), exact)
            assert integers.max() >= STEPS - 1  # the whole range is in use


def test_gradients_of_scores_need_no_limit_on_pairs() -> None:
    """With weights of full size, no pair of products of a digit of the gradient passes 16 bits."""
    values = np.tile(np.array([127, 127, -127, -127], np.int8), (16, 8))  # [inputs, classes]
    draw = np.random.default_rng(7)
    extremes = np.tile(np.array([1, 1, -1, -1], np.float32), 8)
    dy = np.stack([extremes, -extremes, *draw.normal(size=(6, 32)).astype(np.float32), 0.4 * extremes + 0.1])
    bench = Bench(np.ones((len(dy), 16), np.float32))
    w, s = bench.emit.stored("w", values), bench.emit.stored("s", np.ones(32, np.float32))
    _, dx = bench.run(int8_matmul(bench.emit, bench.x, w, s, rounding="tensor", gradient=SCORES), dy)
    np.testing.assert_allclose(dx, dy @ values.T.astype(np.float32), atol=0.01)  # of up to 4064
    model = ir.Model(bench.graph, ir_version=IR_VERSION)
    model.graph.outputs[:] = [node.outputs[0] for node in model.graph if node.op_type == "QuantizeLinear"]
    digits = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, bench.fed)
    assert len(digits) == 3
    for integers in digits:
        exact = integers.astype(np.int64) @ values.T.astype(np.int64)
        np.testing.assert_array_equal(_saturating(integers, values.T), exact)


def test_small_probabilities_count_in_a_gradient_of_scores() -> None:
    """A row of one label and many small probabilities: their sum is lost in 8 bits, and kept in three digits."""
    draw = np.random.default_rng(3)
    values, scale = draw.integers(-60, 60, (16, 2000)).astype(np.int8), draw.uniform(0.5, 1.5, 2000).astype(np.float32)
    dy = draw.dirichlet(np.full(2000, 0.5), 6).astype(np.float32)
    dy[np.arange(6), draw.integers(0, 2000, 6)] -= 1
    wanted = dy @ (values * scale).T
    found = {}
    for gradient in ("row", SCORES):
        bench = Bench(draw.normal(size=(6, 16)).astype(np.float32))
        w, s = bench.emit.stored("w", values), bench.emit.stored("s", scale)
        found[gradient] = bench.run(int8_matmul(bench.emit, bench.x, w, s, gradient=gradient), dy)[1]
    assert _off(found["row"], wanted) > 0.02 > 0.005 > _off(found[SCORES], wanted)


def _cross_entropy(
    logits: Callable[[Bench], ir.Value], x: Array, label: Array, settings: Entropy, weights: Array | None
) -> tuple[Array, ir.Model]:
    """The gradient of x in a cross-entropy, and its graph."""
    bench = Bench(x)
    y = logits(bench)
    y.shape, y.dtype = ir.Shape([len(x), CLASSES]), ir.DataType.FLOAT
    of_rows = Weights(None, None if weights is None else bench.emit.constant(weights))
    terms = terms_of(bench.emit, settings, lean_scores(bench.emit, y), bench.emit.constant(label), of_rows)
    terms.sum.shape, model = ir.Shape([]), ir.Model(bench.graph, ir_version=IR_VERSION)
    infer_shapes(model)
    bench.graph.outputs.extend(differentiate(bench.graph, terms.sum, [bench.x]).values())
    lower(model)
    RemoveUnusedNodesPass()(model)
    NameFixPass()(model)
    assert_runs_on_devices(model)
    (dx,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, bench.fed)
    return np.asarray(dx), model


CLASSES = 3000


@pytest.mark.parametrize("layout", ["plain", "transposed", "both", "one scale"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("spread", [0.01, 4.0])
def test_the_gradient_of_a_cross_entropy_is_fine(layout: str, smoothing: float, spread: float) -> None:
    """Rows that know their label, rows that know nothing, weighted and ignored ones: two digits and the label's row."""
    draw = np.random.default_rng(11)
    values = draw.integers(-127, 128, (24, CLASSES)).astype(np.int8)
    scale = draw.uniform(0.5, 1.5, CLASSES).astype(np.float32) * np.float32(spread / 200)
    x, label = draw.normal(size=(6, 24)).astype(np.float32), draw.integers(0, CLASSES, 6)
    if layout == "one scale":
        scale = np.asarray(np.float32(spread / 200))
    label[:2], label[5] = (x @ (values * scale)).argmax(axis=1)[:2], -100
    weights = None if spread > 1 else np.array([1, -2, 0.5, 0, 3, 1], np.float32)

    def logits(bench: Bench) -> ir.Value:
        transposed = layout == "transposed"
        w = bench.emit.stored("w", np.ascontiguousarray(values.T) if transposed else values)
        both = bench.emit.stored("wᵀ", np.ascontiguousarray(values.T)) if layout == "both" else None
        inputs = (bench.x, w, bench.emit.stored("s", scale), None, None, both)
        return int8_matmul(bench.emit, *inputs, trans_b=int(transposed), rounding="fine", gradient=SCORES)

    dx, model = _cross_entropy(logits, x, label, Entropy(smoothing, -100), weights)
    leaf = torch.tensor(x, requires_grad=True)
    matrix, options = torch.tensor(values * scale), {"label_smoothing": smoothing, "reduction": "none"}
    losses = functional.cross_entropy(leaf @ matrix, torch.tensor(label), **options)
    (losses if weights is None else losses * torch.tensor(weights)).sum().backward()
    assert leaf.grad is not None and _off(dx, leaf.grad.numpy()) < 2e-3
    digits = [node for node in model.graph if node.op_type == "QuantizeLinear" and "grad" in str(node.name)]
    assert len(digits) == (3 if smoothing else 2)


def _blocks(bits: int, width: int, block: int, with_zero_points: bool) -> tuple[Array, Array, Array | None, Array]:
    """Quantized weights, scales and zero points of 6 rows, in the layout of MatMulNBits, and the matrix [6, width]."""
    count, middle = -(-width // block), 1 << (bits - 1)
    steps = RNG.integers(0, 1 << bits, (6, count, block)).astype(np.uint8)
    scales = RNG.uniform(0.01, 0.1, (6, count)).astype(np.float32)
    zeros = RNG.integers(0, 1 << bits, (6, count)).astype(np.uint8) if with_zero_points else np.full((6, count), middle)
    matrix = ((steps - zeros[..., None].astype(np.float32)) * scales[..., None]).reshape(6, -1)[:, :width]
    if bits == 8:
        return steps, scales.ravel(), zeros.astype(np.uint8) if with_zero_points else None, matrix
    packed = steps[..., 0::2] | (steps[..., 1::2] << 4)
    even = np.pad(zeros, ((0, 0), (0, count % 2))).astype(np.uint8)
    return packed, scales.ravel(), even[:, 0::2] | (even[:, 1::2] << 4) if with_zero_points else None, matrix


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("width", "block"), [(64, 16), (64, 32), (96, 32), (40, 16)])
@pytest.mark.parametrize("with_zero_points", [False, True])
def test_a_gradient_crosses_a_product_with_blocks(bits: int, width: int, block: int, with_zero_points: bool) -> None:
    """dx is exactly that of the unpacked matrix, for whole, broken and an odd number of blocks, with zero points."""
    packed, scales, zeros, matrix = _blocks(bits, width, block, with_zero_points)
    bench = Bench(RNG.normal(size=(2, 3, width)).astype(np.float32), opset=21)
    stored = [bench.emit.stored("w", packed), bench.emit.stored("s", scales)]
    stored += [] if zeros is None else [bench.emit.stored("z", zeros)]
    settings = {"K": width, "N": 6, "bits": bits, "block_size": block, "accuracy_level": 4}
    y = bench.emit.op("MatMulNBits", bench.x, *stored, domain=CONTRIB, **settings)
    dy = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    have_y, dx = bench.run(y, dy)
    assert _off(have_y, bench.fed["x"] @ matrix.T) < 0.02
    np.testing.assert_allclose(dx, dy @ matrix, rtol=1e-4, atol=1e-5)


def test_a_product_with_reordered_columns_is_refused() -> None:
    """``g_idx`` cannot be unpacked; the error says what to do."""
    packed, scales, _, _ = _blocks(4, 64, 32, False)
    bench = Bench(np.ones((2, 64), np.float32), opset=21)
    order = bench.emit.stored("order", np.zeros(64, np.int32))
    weights = bench.emit.stored("w", packed), bench.emit.stored("s", scales)
    settings = {"K": 64, "N": 6, "bits": 4, "block_size": 32}
    y = bench.emit.op("MatMulNBits", bench.x, *weights, None, order, domain=CONTRIB, **settings)
    with pytest.raises(NoGradientForCase, match="g_idx"):
        bench.run(y, np.ones((2, 6), np.float32))


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_gradient_passes_where_an_activation_was_in_range(dtype: type, axis: int | None) -> None:
    """dy inside the range of the integers, 0 where x was clipped; y is x, rounded."""
    x = np.linspace(-3, 3, 60, dtype=np.float32).reshape(15, 4)
    scale = np.float32(0.01) if axis is None else np.array([0.01, 0.02, 0.005, 0.03], np.float32)
    zero_point = np.full(np.shape(scale), 10, dtype)
    bench = Bench(x)
    s, z = bench.emit.stored("s", np.asarray(scale)), bench.emit.stored("z", zero_point)
    y = bench.emit.op(FAKE_QUANTIZE, bench.x, s, z, domain=DOMAIN, axis=1)
    dy = RNG.normal(size=x.shape).astype(np.float32)
    have_y, dx = bench.run(y, dy)
    limits = np.iinfo(dtype)
    inside = (x >= (limits.min - 10.0) * scale) & (x <= (limits.max - 10.0) * scale)
    assert 0 < inside.sum() < x.size
    np.testing.assert_array_equal(dx, np.where(inside, dy, 0))
    assert np.all(np.abs(have_y - x)[inside] <= 0.5001 * np.broadcast_to(scale, x.shape)[inside])


DRAW = np.random.default_rng(3)
ROWS, NARROW, WIDE = 6, 12, 24
DY = (DRAW.normal(size=(2, ROWS // 2, NARROW)) * np.array([1.0, 1e-3, 0.0])[:, None]).astype(np.float32)
X = DRAW.normal(size=(2, ROWS // 2, NARROW)).astype(np.float32)


def _matrix(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    return DRAW.integers(-60, 60, shape).astype(np.int8), DRAW.uniform(1e-3, 3e-3, shape[1]).astype(np.float32)


@pytest.mark.parametrize("kind", ["gated", "plain", "two readers"])
def test_a_gradient_through_a_gate_is_scaled_once(kind: str) -> None:
    """It equals torch's through the float matrices, in rows of very different size."""
    bench, names = Bench(X), ("gate", "up", "down")
    weights = dict(zip(names, [_matrix(NARROW, WIDE), _matrix(NARROW, WIDE), _matrix(WIDE, NARROW)], strict=True))

    def product(x: ir.Value, name: str) -> ir.Value:
        values, scale = (bench.emit.stored(f"{name}.{i}", array) for i, array in enumerate(weights[name]))
        result = int8_matmul(bench.emit, x, values, scale)
        result.shape = ir.Shape([*list(x.shape)[:-1], weights[name][1].size])
        return result

    def op(op_type: str, *inputs: ir.Value) -> ir.Value:
        result = bench.emit.op(op_type, *inputs)
        result.shape = inputs[0].shape
        return result

    gate, up = product(bench.x, "gate"), product(bench.x, "up")
    hidden = op("Mul", gate, op("Sigmoid", gate))
    if kind == "gated":
        hidden = op("Mul", hidden, up)
    y = product(hidden, "down")
    if kind == "two readers":
        y = op("Add", y, op("Mul", y, y))
    have = bench.run(y, DY)

    x = torch.from_numpy(X).requires_grad_()
    wg, wu, wd = (torch.from_numpy(values * scale) for values, scale in weights.values())
    inner = functional.silu(x @ wg) * (x @ wu if kind == "gated" else 1)
    out = inner @ wd
    out = out + out * out if kind == "two readers" else out
    out.backward(torch.from_numpy(DY))
    for row in range(ROWS // 2 - 1):
        wanted = x.grad[:, row].numpy()
        assert np.linalg.norm(have[1][:, row] - wanted) < 0.03 * np.linalg.norm(wanted)
    assert not np.any(have[1][:, -1])

    columns = [node for node in bench.graph if node.op_type == "Mul" and "grad" in str(node.name) and _by_row(node)]
    assert len(columns) == {"gated": 2, "plain": 1, "two readers": 1}[kind]


def _by_row(node: ir.Node) -> bool:
    """Whether a node multiplies the rows of a tensor, and not a column by a column."""
    ranks = [list(value.shape or ()) for value in node.inputs if value is not None]
    return any(shape[-1:] == [1] for shape in ranks) and any(shape[-1:] not in ([1], []) for shape in ranks)
