"""4-bit matrices: grids of other formats that are kept, and the graph that expands them to int8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from edgepeft_export.forward import from_torch
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.expansion import expand, expansion_of, stored
from edgepeft_export.graph.int4 import Int4Matrix, grids_of, to_int4
from edgepeft_export.graph.rounding import LARGEST_PAIR, pair_sums
from edgepeft_export.opset import OPSET, assert_runs_on_devices
from edgepeft_export.quantize import Quantization, quantize

RNG = np.random.default_rng(0)
INPUTS, OUTPUTS, GROUP = 96, 10, 32


def _on_grid(kind: str) -> np.ndarray:
    """A matrix [inputs, outputs] of groups whose two numbers have half precision, as in a GGUF file."""
    scale = RNG.uniform(0.5, 2, (OUTPUTS, INPUTS // GROUP, 1)).astype(np.float16).astype(np.float32)
    codes = RNG.integers(0, 16, (OUTPUTS, INPUTS // GROUP, GROUP)).astype(np.float32)
    low = -8 * scale
    if kind == "q4_1":
        low = RNG.normal(-8, 2, scale.shape).astype(np.float16).astype(np.float32)
    matrix: np.ndarray = (codes * scale + low).reshape(OUTPUTS, INPUTS).T
    return matrix


@pytest.mark.parametrize("kind", ["q4_0", "q4_1"])
def test_a_matrix_on_a_grid_keeps_its_numbers(kind: str) -> None:
    """Each is off by what rounding to int8 costs, and not by a second rounding to 4 bits. Zeros stay zeros."""
    matrix = _on_grid(kind)
    four = to_int4(matrix, GROUP)
    assert np.all(np.abs(four.matrix() - matrix) <= 1.6 * four.scale)  # a code, a step and an offset are rounded
    assert np.all(four.matrix()[matrix == 0] == 0)
    assert np.all(np.abs(matrix).max(axis=0) > 60 * four.scale)
    reordered = to_int4(matrix[:, ::-1], GROUP)
    np.testing.assert_array_equal(reordered.matrix(), four.matrix()[:, ::-1])


@pytest.mark.parametrize("kind", ["q4_1", "extreme", "heavy"])
def test_neighbours_of_one_sign_stay_within_16_bits(kind: str) -> None:
    """Along both axes, as of an int8 matrix: kernels without VNNI add two products in 16 bits."""
    drawn = {"q4_1": _on_grid("q4_1"), "extreme": np.ones((64, 6)), "heavy": RNG.standard_cauchy((64, 33))}
    values = to_int4(drawn[kind].astype(np.float32), GROUP).integers().astype(int)
    assert max(pair_sums(values).max(), pair_sums(values.T).max()) <= LARGEST_PAIR
    assert np.abs(values).max() > 50


def test_other_matrices_lie_on_no_grid() -> None:
    """Noise, a grid of 17 numbers, one of another group size."""
    assert grids_of(RNG.normal(size=(4, 64)).astype(np.float32), GROUP) is None
    assert grids_of(np.resize(np.arange(17, dtype=np.float32), (1, 64)), 64) is None
    assert grids_of(_on_grid("q4_1").T[:, :90].copy(), GROUP) is None


@pytest.mark.parametrize("kind", ["q4_1", "noise", "odd", "narrow"])
def test_onnxruntime_expands_the_integers(kind: str) -> None:
    """The graph's int8 matrix is numpy's, with padding and without, with offsets and without."""
    sizes = {"noise": (128, 7), "odd": (70, 5), "narrow": (3, 4)}
    matrix = _on_grid(kind) if kind == "q4_1" else RNG.normal(size=sizes[kind]).astype(np.float32)
    four = to_int4(matrix, GROUP)
    assert (four.offsets is not None) == (kind == "q4_1")
    model = _expanding(four)
    (found,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {})
    np.testing.assert_array_equal(found, four.integers())
    read = expansion_of(model.graph.outputs[0])
    assert read is not None and (read.inputs, read.group) == (len(matrix), GROUP)


def _expanding(four: Int4Matrix) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="expanding")
    emit = Emitter(graph, scope="layer")
    made = expand(emit, stored(four, "w", emit.stored))
    made.name = "matrix"
    graph.outputs.append(made)
    model = ir.Model(graph, ir_version=10)
    lower(model)
    assert_runs_on_devices(model)
    return model


class Tables(nn.Module):
    """A table that is only looked up, by indices of several shapes, and a matmul before a nonlinear output."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(90, 40)
        self.up = nn.Linear(40, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.up(self.words(ids))))


@pytest.mark.parametrize("on_grid", [False, True])
def test_rows_of_a_table_are_looked_up_in_4_bits(on_grid: bool) -> None:
    """The table's bytes lie row by row, and the rows are those of its matrix."""
    torch.manual_seed(0)
    model = Tables().requires_grad_(False)
    if on_grid:
        codes, low = torch.randint(0, 16, (90, 40)), torch.randn(90, 5).repeat_interleave(8, 1)
        model.words.weight.copy_(codes * 0.125 + low)
    model.head.bias.requires_grad_(True)
    forward, report = quantize(from_torch(model, torch.zeros(2, 5, dtype=torch.int64)), Quantization("int4", block=16))
    assert {name: tensor.kind for name, tensor in report.quantized.items()} == {
        "words.weight.int4": "int4",
        "up.weight.int4": "int4",
    }
    four = to_int4(model.words.weight.numpy().T.copy(), 16)
    assert forward.model.graph.initializers["words.weight.int4"].shape == [90, *four.bytes.shape[:2]]
    ids = RNG.integers(0, 90, (3, 4))
    with torch.no_grad():
        model.words.weight.copy_(torch.from_numpy(four.matrix().T))
        model.up.weight.copy_(torch.from_numpy(to_int4(model.up.weight.numpy().T.copy(), 16).matrix().T))
        expected = model(torch.from_numpy(ids)).numpy()
    lower(graph := forward.model.clone())
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: ids, **forward.parameters})
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
