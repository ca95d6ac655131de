"""Graph edits preserve names and outputs, and a linear layer's matrix can be read and replaced."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgepeft_export.fold.pairs import fold_lora
from edgepeft_export.graph.constants import constant_factor, new_initializer
from edgepeft_export.graph.custom_ops import CONTRIB, int8_matmul, lower
from edgepeft_export.graph.edit import add_input, eliminate_node, insert_on_edge, replace_node
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.expansion import expand, stored
from edgepeft_export.graph.int4 import to_int4
from edgepeft_export.graph.linear import LinearSite
from edgepeft_export.graph.rounding import (
    LARGEST_PAIR,
    STEPS,
    column_sums,
    pack_nibbles,
    pair_sums,
    to_blocks,
    to_int8,
    unpack_nibbles,
)

RNG = np.random.default_rng(0)


def _graph(op_type: str = "Relu") -> tuple[ir.Graph, ir.Node]:
    """``y = op(x)``, with y as the graph's output."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    x = add_input(graph, "x", [4, 8])
    y = Emitter(graph).op(op_type, x)
    y.name, y.shape = "y", ir.Shape([4, 8])
    graph.outputs.append(y)
    node = y.producer()
    assert node is not None
    return graph, node


def test_a_replaced_node_leaves_its_name_and_shape() -> None:
    """The new node's output is the graph's output ``y``."""
    graph, node = _graph()
    replace_node(node, ir.node("Abs", node.inputs))
    assert [(node.op_type, node.outputs[0].name) for node in graph] == [("Abs", "y")]
    assert graph.outputs[0].name == "y" and graph.outputs[0].shape == [4, 8]


def test_an_eliminated_node_leaves_the_name_of_an_output() -> None:
    """Its input is the output ``y`` now."""
    graph, node = _graph()
    last = Emitter(graph).op("Identity", node.outputs[0]).producer()
    assert last is not None
    node.outputs[0].name, last.outputs[0].name = "inner", "y"
    graph.outputs[:] = [last.outputs[0]]
    eliminate_node(last)
    assert [node.op_type for node in graph] == ["Relu"]
    assert graph.outputs[0] is node.outputs[0] and graph.outputs[0].name == "y"


def test_an_inserted_node_is_read_by_all_others() -> None:
    """Readers and the graph's output move to it; the node itself reads the value."""
    graph, node = _graph()
    reader = Emitter(graph).op("Neg", node.outputs[0]).producer()
    inserted = insert_on_edge(node.outputs[0], ir.node("Abs", [node.outputs[0]]))
    assert reader is not None and reader.inputs[0] is inserted and graph.outputs[0] is inserted
    assert inserted.name == "y" and [use.node.op_type for use in node.outputs[0].uses()] == ["Abs"]


@pytest.mark.parametrize(("op_type", "expected"), [("Mul", 4.0), ("Div", 0.25)])
def test_a_constant_factor_is_read(op_type: str, expected: float) -> None:
    """x · 4 and x / 4."""
    graph, node = _graph()
    emit = Emitter(graph)
    scaled = emit.op(op_type, node.outputs[0], emit.constant(np.array(4.0, np.float32)))
    assert constant_factor(scaled) == (expected, node.outputs[0])
    assert constant_factor(node.outputs[0]) is None


def _layer(kind: str) -> tuple[LinearSite, np.ndarray]:
    """A layer of 8 inputs and 6 outputs as it is stored, without inferred shapes, and its matrix."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    emit, x = Emitter(graph), add_input(graph, "x", [4, 8])
    matrix = RNG.normal(size=(8, 6)).astype(np.float32)
    if kind == "MatMul":
        y = emit.op("MatMul", x, new_initializer(graph, "w", matrix))
    elif kind == "Gemm":
        y = emit.op("Gemm", x, new_initializer(graph, "w", matrix.T), transB=1, alpha=0.5)
        matrix = 0.5 * matrix
    elif kind == "int8 by row":
        eight = to_int8(matrix, 1)
        w, scale = new_initializer(graph, "w", eight.values), new_initializer(graph, "s", eight.scale)
        y = int8_matmul(emit, x, w, scale, rounding="row")
        y.shape, y.name = ir.Shape([4, 6]), "y"
        graph.outputs.append(y)
        lower(ir.Model(graph, ir_version=10))
        y = graph.outputs[0].producer().inputs[0]
        matrix = eight.values * eight.scale
    elif kind == "int8":
        eight = to_int8(matrix.T, 0)
        w = emit.op("Transpose", new_initializer(graph, "w", eight.values), perm=[1, 0])
        rounded = emit.ops("DynamicQuantizeLinear", x, outputs=3)
        scale = new_initializer(graph, "s", eight.scale)
        y = emit.op("MatMulIntegerToFloat", rounded[0], w, rounded[1], scale, rounded[2], domain=CONTRIB)
        matrix = (eight.values * eight.scale[:, None]).T
    elif kind == "int4":
        four = to_int4(matrix, 2)
        expansion = stored(four, "w", lambda name, array: new_initializer(graph, name, array))
        w, scale = expand(emit, expansion), new_initializer(graph, "s", four.scale)
        y = int8_matmul(emit, x, w, scale)
        y.shape, y.name = ir.Shape([4, 6]), "y"
        graph.outputs.append(y)
        lower(ir.Model(graph, ir_version=10))
        y, matrix = graph.outputs[0], four.matrix()
    else:
        four = to_blocks(np.ascontiguousarray(matrix.T), 16)
        w, scale = new_initializer(graph, "w", four.values), new_initializer(graph, "s", four.scales.reshape(-1))
        y = emit.op("MatMulNBits", x, w, scale, domain=CONTRIB, K=8, N=6, bits=4, block_size=16)
        steps = unpack_nibbles(four.values).astype(np.float32) - 8
        matrix = (steps * four.scales[..., None]).reshape(6, -1)[:, :8].T
    y.dtype = ir.DataType.FLOAT
    site = LinearSite.of(y.producer())
    assert site is not None
    return site, matrix


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "int8", "int8 by row", "int4", "blocks"])
def test_a_layer_gives_its_matrix_and_accepts_another(kind: str) -> None:
    """For every storage, the matrix that is read back is as close as the storage allows."""
    site, matrix = _layer(kind)
    assert (site.inputs, site.outputs, site.x.name) == (8, 6, "x")
    np.testing.assert_allclose(site.matrix(), matrix, rtol=1e-6)
    other = RNG.normal(size=(8, 6))
    site.with_matrix(other)
    changed = LinearSite.of(site.node)
    assert changed is not None
    error = float(np.abs(changed.matrix() - other).max())
    assert error < {"MatMul": 1e-6, "Gemm": 1e-6, "int8": 0.03, "int8 by row": 0.03, "int4": 0.4, "blocks": 0.4}[kind]


@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 8)])
@pytest.mark.parametrize("rounding", ["row", "fine"])
def test_a_layer_rounded_by_row_takes_another_matrix(rounding: str, shape: tuple[int, ...]) -> None:
    """The columns' sums follow the matrix: the product is that of the other matrix, for rows of one sign too."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    emit, x = Emitter(graph), add_input(graph, "x", list(shape))
    eight = to_int8(RNG.normal(size=(8, 6)).astype(np.float32), 1)
    arrays = {"w": eight.values, "s": eight.scale, "sums": column_sums(eight.values, eight.scale, 1)}
    w, scale, sums = (new_initializer(graph, name, array) for name, array in arrays.items())
    y = int8_matmul(emit, x, w, scale, None, None, None, sums if rounding == "row" else None, rounding=rounding)
    y.shape, y.dtype, y.name = ir.Shape([*shape[:-1], 6]), ir.DataType.FLOAT, "y"
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=10)
    lower(model)
    site = next(site for node in graph if (site := LinearSite.of(node)) is not None)
    assert (site.x.name, site.result.name, site.storage) == ("x", "y", "int8")
    other, given = RNG.normal(size=(8, 6)), RNG.uniform(0.5, 1, shape).astype(np.float32)
    site.with_matrix(other)
    (found,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": given})
    np.testing.assert_allclose(found, given @ other, atol=0.06)


@pytest.mark.parametrize("rounding", ["row", "fine"])
def test_a_low_rank_pair_is_folded_into_a_layer_rounded_by_row(rounding: str) -> None:
    """The pair beside the layer disappears, and the layer multiplies by the sum of both."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    emit, x = Emitter(graph), add_input(graph, "x", [2, 3, 8])
    eight, a, b = to_int8(RNG.normal(size=(8, 6)).astype(np.float32), 1), RNG.normal(size=(8, 2)), np.ones((2, 6))
    w, scale = new_initializer(graph, "w", eight.values), new_initializer(graph, "s", eight.scale)
    sums = new_initializer(graph, "sums", column_sums(eight.values, eight.scale, 1)) if rounding == "row" else None
    base = int8_matmul(emit, x, w, scale, None, None, None, sums, rounding=rounding)
    pair = [new_initializer(graph, name, array.astype(np.float32)) for name, array in (("a", a), ("b", b))]
    narrow = emit.op("MatMul", x, pair[0])
    y = emit.op("Add", base, emit.op("MatMul", narrow, pair[1]))
    for value, width in ((base, 6), (narrow, 2), (narrow.uses()[0].node.outputs[0], 6), (y, 6)):
        value.shape, value.dtype = ir.Shape([2, 3, width]), ir.DataType.FLOAT
    graph.outputs.append(y)
    y.name, model = "y", ir.Model(graph, ir_version=10)
    lower(model)
    assert fold_lora(model, pair, into_quantized=True) == 1
    given = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    (found,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": given})
    np.testing.assert_allclose(found, given @ (eight.values * eight.scale + a @ b), atol=0.2)
    assert "a" not in graph.initializers or not graph.initializers["a"].uses()


def test_a_shared_weight_is_changed_for_one_reader_alone() -> None:
    """The other layer keeps the old matrix; with ``allow_shared=False`` neither is a site."""
    site, matrix = _layer("MatMul")
    assert isinstance(site.node.graph, ir.Graph)
    twin = Emitter(site.node.graph).op("MatMul", *site.node.inputs).producer()
    assert LinearSite.of(twin, allow_shared=False) is None
    site.with_matrix(np.zeros((8, 6)))
    one, other = LinearSite.of(site.node), LinearSite.of(twin)
    assert one is not None and other is not None
    assert not one.matrix().any() and np.array_equal(other.matrix(), matrix)


def test_rounded_neighbours_never_saturate() -> None:
    """Along both axes two int8 weights of one sign sum to the limit at most, at which 16 bits suffice."""
    matrix = np.abs(RNG.normal(size=(64, 64))).astype(np.float32)
    values = to_int8(matrix, 1).values.astype(np.int16)
    assert max(pair_sums(values).max(), pair_sums(values.T).max()) <= LARGEST_PAIR
    assert np.iinfo(np.int16).max >= STEPS * LARGEST_PAIR


def test_nibbles_round_trip() -> None:
    """Two to a byte, the first in the low half."""
    values = RNG.integers(0, 16, (3, 8)).astype(np.uint8)
    assert np.array_equal(unpack_nibbles(pack_nibbles(values)), values)
    assert pack_nibbles(np.array([1, 2], np.uint8)).tolist() == [0x21]
