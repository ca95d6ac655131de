"""Programs of segments give the step, the outputs and the checkpoints of whole graphs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.methods import Lora, attach, by_name
from edgepeft_export import losses
from edgepeft_export.bundle import write_bundle
from edgepeft_export.chunks import CHUNKS, NORMAL, chunk_losses
from edgepeft_export.compile import compile_step
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.optimizers import SGD
from edgepeft_export.program.cuts import find_cuts
from edgepeft_export.program.periods import Piece, grouped
from edgepeft_export.quantize import Quantization, quantize
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from tests.support.networks import NETWORKS, Network, to_numpy
from tests.support.training import torch_losses
from tests.zoo import convolution, transformers

ALL = {**NETWORKS, **transformers.NETWORKS, **convolution.NETWORKS}
STEPS, LR = 20, 0.05
OPTIMIZER = SGD(lr=LR, momentum=0.9)


@cache
def _forward(name: str, method: str, compute: str) -> Forward:
    network = ALL[name]
    settings = {"rank": 2} if method in ("lora", "shared") else {}
    forward = from_torch(attach(by_name(method, **settings), network.model()), network.example())
    return quantize(forward, Quantization(compute, smallest=64))[0]


def _bundle(name: str, method: str, compute: str, weights: str, folder: Path) -> Path:
    loss = losses.by_name(ALL[name].loss)
    compiled = compile_step(_forward(name, method, compute), loss, OPTIMIZER, weights=weights)
    return write_bundle(compiled, loss, OPTIMIZER, folder / weights)


def _trained(bundle: Path, network: Network, steps: int) -> tuple[list[float], dict[str, np.ndarray]]:
    with Trainer.open(bundle, threads=1) as trainer:
        found = [trainer.step(to_numpy(*batch)) for batch in network.batches(steps)]
        return found, trainer.parameters()


@pytest.mark.parametrize(
    "name",
    ["llama", "bert", "t5", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "neox", "vit", "m2m", "moe"))],
)
def test_a_step_in_segments_is_pytorch_s(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty losses agree with PyTorch's to 1e-5, for every family of networks with cuts, seven rows at a time."""
    monkeypatch.setitem(CHUNKS, "normal", replace(NORMAL, rows=7))
    network, method = ALL[name], by_name("lora", rank=2)
    model = attach(method, network.model())
    bundle = edgepeft.prepare(
        model,
        network.example(),
        loss=network.loss,
        optimizer=OPTIMIZER,
        compression=edgepeft.Compression(weights="input"),
        out=tmp_path / "bundle",
    ).bundle
    assert len(Bundle.open(bundle).manifest.programs.train) > 3
    found, _ = _trained(bundle, network, STEPS)
    assert found == pytest.approx(list(torch_losses(model, network, STEPS, LR)), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "method", "compute", "tolerance"),
    [
        ("llama", "lora", "int8", 3e-3),
        ("t5", "full", "fp32", 1e-5),
        ("gpt2", "shared", "fp32", 1e-5),
        ("residual-cnn", "lora", "fp32", 1e-5),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("gpt2", "lora", "int8", 3e-3),
                ("llama", "lora", "int4", 3e-3),
                ("llama", "sift", "fp32", 1e-5),
                ("llama", "ffa", "fp32", 1e-5),
                ("t5", "prefix", "fp32", 1e-5),
            )
        ),
    ],
)
def test_a_step_in_segments_is_that_of_the_whole_graph(
    name: str, method: str, compute: str, tolerance: float, tmp_path: Path
) -> None:
    """Quantized weights, values that several segments read and that have gradients, parameters that many share."""
    bundles = [_bundle(name, method, compute, weights, tmp_path) for weights in ("constant", "input")]
    (whole, expected), (parts, found) = (_trained(bundle, ALL[name], 8) for bundle in bundles)
    assert parts == pytest.approx(whole, rel=tolerance)
    for parameter, array in expected.items():
        np.testing.assert_allclose(found[parameter], array, rtol=tolerance, atol=tolerance, err_msg=parameter)


def test_equal_blocks_share_a_graph() -> None:
    """The number of graphs does not depend on the number of blocks."""
    counts = {}
    for blocks in (2, 4):
        config = NETWORKS["llama"].model().config
        config.num_hidden_layers = blocks
        model = type(NETWORKS["llama"].model())(config)
        forward = from_torch(attach(Lora(rank=2, target_modules=("q_proj",)), model), NETWORKS["llama"].example())
        loss = losses.by_name("causal_lm")
        compiled = compile_step(forward, loss, OPTIMIZER, weights="input")
        counts[blocks] = set(compiled.graphs), len(compiled.programs["train"])
    assert counts[2][0] == counts[4][0]
    assert counts[4][1] == counts[2][1] + 4


@pytest.mark.parametrize("classes", [1, 10**6])
def test_a_loss_in_chunks_is_a_segment_without_a_block(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block is one like the others, whether or not the head multiplies in a loop."""
    monkeypatch.setattr("edgepeft_export.compile.chunk_losses", partial(chunk_losses, large=classes))
    compiled = compile_step(_forward("llama", "lora", "fp32"), losses.by_name("causal_lm"), OPTIMIZER, weights="input")
    head = {node.op_type for node in compiled.graphs["head.train"].graph}
    assert ("Scan" in head) == (classes == 1)
    assert not {"Softmax", "Sigmoid"} & head  # of the last block


def test_what_lies_below_the_trained_blocks_runs_forward_only(tmp_path: Path) -> None:
    """With the last two of three blocks trained, two segments run backward; the value before them is the cache."""
    config = NETWORKS["gpt2"].model().config
    config.n_layer = 3
    model = type(NETWORKS["gpt2"].model())(config).requires_grad_(False)
    model.transformer.h[1:].requires_grad_(True)
    forward = from_torch(model, NETWORKS["gpt2"].example())
    compiled = compile_step(forward, losses.by_name("causal_lm"), OPTIMIZER, weights="input")
    calls = compiled.programs["train"]
    head = next(index for index, call in enumerate(calls) if call.graph == "head.train.onnx")
    bundle = Bundle.open(write_bundle(compiled, losses.by_name("causal_lm"), OPTIMIZER, tmp_path / "bundle"))
    assert bundle.manifest.cache is not None
    below = next(index for index, call in enumerate(calls) if bundle.manifest.cache.value in call.outputs.values())
    trains = [any(name.startswith("parameter") for name in call.inputs) for call in calls]
    assert trains == [index > below and index != head for index in range(len(calls))]
    assert 0 < below < head
    assert len(calls) - head == head - below  # one backward for each forward above


def test_a_graph_without_cuts_stays_whole() -> None:
    """A model of one layer, with a notice."""
    forward = from_torch(nn.Linear(3, 2), {"input": torch.zeros(2, 3)})
    with pytest.warns(UserWarning, match="cannot be cut"):
        compiled = compile_step(forward, losses.by_name("mse"), OPTIMIZER, weights="input")
    assert set(compiled.graphs) == {"train", "optimizer", "eval", "infer"}


def _pieces(kinds: str, matmuls: list[int], inside: list[int] | None = None) -> list[Piece]:
    return [Piece(*each, 1) for each in zip(kinds, matmuls, inside or matmuls, strict=True)]


def test_pieces_are_grouped_by_their_largest_repeated_pattern() -> None:
    """Two pieces per block; encoder and decoder."""
    assert grouped(_pieces("sabababh", [0, 9, 2, 9, 2, 9, 2, 1])) == [
        range(1), range(1, 3), range(3, 5), range(5, 7), range(7, 8)
    ]  # fmt: skip
    assert grouped(_pieces("sababeacbacbh", [1] * 13)) == [
        range(1), range(1, 3), range(3, 5), range(5, 6), range(6, 9), range(9, 12), range(12, 13)
    ]  # fmt: skip


def test_pieces_that_do_not_repeat_are_joined_by_bytes() -> None:
    """Segments are about as large as the largest piece, and few where what lies between them would be more."""
    kinds, matmuls = "sabcdefgh", [1] * 9
    found = grouped(_pieces(kinds, matmuls, [0, 400, 400, 200, 200, 100, 100, 100, 100]))
    assert found == [range(1), range(1, 2), range(2, 3), range(3, 5), range(5, 9)]
    kept = [replace(piece, kept=100) for piece in _pieces(kinds, matmuls, [0, *[100] * 8])]
    assert len(grouped(kept)) == 4


def test_cuts_are_the_values_that_everything_passes() -> None:
    """Sums of a residual stream are cuts; what runs beside it is not, and neither is a bias by position."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 20]>
        agraph (int64[n] ids, float[8,4] table, float[4,4] w, float[8,4] bias) => (float[n,4] y) {
            x = Gather(table, ids)
            b = Gather(bias, ids)
            f = MatMul(x, w)
            fb = Add(f, b)
            s = Add(x, fb)
            g = MatMul(s, w)
            gb = Add(g, b)
            t = Add(s, gb)
            y = MatMul(t, w)
        }""")
    infer_shapes(model)
    assert [value.name for value in find_cuts(model.graph, ["table", "w", "bias"])] == ["x", "s", "t"]


def test_large_models_are_segments_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes of their weights."""
    loss, counts = losses.by_name("causal_lm"), []
    for limit, compute in ((10_000, "int8"), (10_000, "int4"), (10_000_000, "int8")):
        monkeypatch.setattr("edgepeft_export.compile.MANY_BYTES", limit)
        compiled = compile_step(_forward("llama", "lora", compute), loss, OPTIMIZER)
        counts.append(len(compiled.programs["train"]) > 1)
    assert counts == [True, True, False]
