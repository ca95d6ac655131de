"""Losses over many classes run over chunks of rows: torch's values, and no logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepeft_export.chunks import LARGE, NORMAL
from edgepeft_export.compile import Compiled, compile_step
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.losses import CausalLM, CrossEntropy, Loss
from edgepeft_export.memory import activation_peaks
from edgepeft_export.optimizers import SGD
from edgepeft_export.quantize import Quantization, quantize
from tests.support.linear_graphs import FEATURES, compiled, expected_of, linear, run

CLASSES = LARGE + 5
MANY = 2**16 + 1
"""Classes of which a chunk is larger than everything else."""
RNG = np.random.default_rng(3)
WEIGHTS = tuple(float(weight) for weight in RNG.choice([0.25, 0.5, 1.0, 2.0], CLASSES))
EVERYTHING = {"label_smoothing": 0.2, "weight": torch.tensor(WEIGHTS), "ignore_index": 1}

Oracle = Callable[[Tensor, Tensor], Tensor]


def _shifted(logits: Tensor, labels: Tensor, **settings: object) -> Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), **settings)


CASES: dict[str, tuple[Loss, str, Oracle]] = {
    "rows": (CrossEntropy(), "rows", functional.cross_entropy),
    "smoothed": (CrossEntropy(0.3), "rows", partial(functional.cross_entropy, label_smoothing=0.3)),
    "all-settings": (CrossEntropy(0.2, WEIGHTS, 1), "rows", partial(functional.cross_entropy, **EVERYTHING)),
    "causal-lm": (CausalLM(), "tokens", _shifted),
    "causal-lm-smoothed": (CausalLM(label_smoothing=0.1), "tokens", partial(_shifted, label_smoothing=0.1)),
}


def _batch(kind: str, loss: Loss, rows: int, counted: float = 0.6, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sizes = (rows,) if kind == "rows" else (rows, 7)
    labels = torch.randint(0, CLASSES, sizes, generator=draw)
    labels[torch.rand(sizes, generator=draw) >= counted] = loss.values()["ignore_index"]
    return {"x": 2 * torch.randn((*sizes, FEATURES), generator=draw), "labels": labels}


@cache
def _step(name: str) -> tuple[Forward, Compiled]:
    loss, kind, _ = CASES[name]
    forward = linear(kind, classes=CLASSES)
    return forward, compiled(forward, loss)


def _loops(step: Compiled) -> list[ir.Node]:
    return [node for node in step.graphs["train"].graph if node.op_type == "Scan"]


def _wide(step: Compiled) -> list[ir.Value]:
    """Values outside of loops with a row of logits for each row of the batch."""
    values = [value for node in step.graphs["train"].graph for value in node.outputs if value.shape is not None]
    return [
        value
        for value in values
        if len(value.shape) > 1 and value.shape[-1] == CLASSES and not isinstance(value.shape[0], int)
    ]


@pytest.mark.parametrize("rows", [1, NORMAL.logits // 7, 3 * NORMAL.logits + 1])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_torch(name: str, rows: int) -> None:
    """For less than one chunk and for several, with labels that do not count among them."""
    loss, kind, oracle = CASES[name]
    forward, step = _step(name)
    batch = _batch(kind, loss, rows, counted=1.0 if rows == 1 else 0.6)
    value, gradients = expected_of(forward, kind, oracle, batch)
    result = run(step, batch)
    assert result.loss == pytest.approx(value, rel=1e-5)
    for parameter, gradient in gradients.items():
        np.testing.assert_allclose(result.gradients[parameter], gradient, rtol=1e-4, atol=1e-6, err_msg=parameter)
    assert len(_loops(step)) == 1 and not _wide(step)


@pytest.mark.parametrize("loss", [CrossEntropy(0.2, WEIGHTS, 1), CausalLM()])
def test_a_weight_counts_an_example_as_often(loss: Loss) -> None:
    """Weights of examples in several chunks are the loss and gradients of a batch that repeats them so often."""
    kind = "rows" if isinstance(loss, CrossEntropy) else "tokens"
    forward, batch = linear(kind, classes=CLASSES), _batch(kind, loss, NORMAL.logits)
    counts = torch.arange(NORMAL.logits) % 3
    repeated = run(compiled(forward, loss), {key: x.repeat_interleave(counts, 0) for key, x in batch.items()})
    step = compiled(forward, replace(loss, example_weights="weights"))
    result = run(step, {**batch, "weights": counts.float()})
    assert (result.sum, result.weight) == pytest.approx((repeated.sum, repeated.weight), rel=1e-5)
    np.testing.assert_allclose(result.gradients["w"], repeated.gradients["w"], rtol=1e-4, atol=1e-6)
    assert len(_loops(step)) == 1


def test_memory_over_many_classes_is_that_of_a_chunk() -> None:
    """More rows than a chunk has: the values are torch's, and no more exists at once than a few tensors of a chunk."""
    forward = linear("rows", classes=MANY)
    step = compiled(forward, CrossEntropy())
    draw = torch.Generator().manual_seed(0)
    rows = NORMAL.logits + 2
    labels = torch.randint(0, MANY, (rows,), generator=draw)
    batch = {"x": torch.randn((rows, FEATURES), generator=draw), "labels": labels}
    value, gradients = expected_of(forward, "rows", functional.cross_entropy, batch)
    result = run(step, batch)
    assert result.loss == pytest.approx(value, rel=1e-5)
    for parameter, gradient in gradients.items():
        np.testing.assert_allclose(result.gradients[parameter], gradient, rtol=1e-4, atol=1e-6, err_msg=parameter)
    chunk = NORMAL.logits * MANY * 4
    assert chunk / 2 < max(peak.get("", 0) for peak in step.activations) < 6 * chunk


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_ignored_labels_weighs_nothing(name: str) -> None:
    """Both terms and all gradients are zero, also with logits that are not finite in rows that do not count."""
    loss, kind, _ = CASES[name]
    batch = _batch(kind, loss, 5, counted=0.0)
    batch["x"].fill_(np.inf)
    result = run(_step(name)[1], batch)
    assert (result.sum, result.weight) == (0.0, 0.0)
    assert all(not gradient.any() for gradient in result.gradients.values())


def test_large_scores_do_not_overflow() -> None:
    """Logits of some thousands have torch's finite loss and gradients."""
    loss, kind, oracle = CASES["rows"]
    forward, step = _step("rows")
    batch = _batch(kind, loss, 9)
    batch["x"] *= 2000
    value, gradients = expected_of(forward, kind, oracle, batch)
    result = run(step, batch)
    assert result.loss == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(result.gradients["w"], gradients["w"], rtol=1e-4, atol=1e-4)


def test_logits_that_mix_rows_stay_whole() -> None:
    """A graph that mixes rows after the matmul has no loop, and a notice says so."""
    text = f"""
        <ir_version: 10, opset_import: ["": 20]>
        mixed (float[batch, 3] x, float[3, {CLASSES}] w) => (float[batch, {CLASSES}] logits) {{
            h = MatMul(x, w)
            axes = Constant <value_ints = [0]> ()
            mean = ReduceMean(h, axes)
            logits = Sub(h, mean)
        }}
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    infer_shapes(model)
    forward = Forward(model, ("x",), {"w": RNG.normal(size=(3, CLASSES)).astype(np.float32)})
    with pytest.warns(match="8,197 classes are computed for a whole batch at once: another node reads them"):
        assert not _loops(compiled(forward, CrossEntropy()))
    assert len(_loops(compiled(linear(classes=CLASSES, second=True), CrossEntropy()))) == 1


class Decoder(nn.Module):
    """A language model's ends: tied embedding and head, a factor and soft cap of Gemma, a pair beside the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 32)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(5))
        self.a, self.b = nn.Parameter(torch.randn(4, 32) / 4), nn.Parameter(torch.randn(CLASSES, 4) / 4)
        self.bias = nn.Parameter(torch.randn(CLASSES))
        for layer in (self.embedding, *self.blocks):
            layer.weight.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = torch.tanh(block(hidden))
        scores = functional.linear(hidden, self.embedding.weight, self.bias)
        scores = scores + functional.linear(functional.linear(hidden, self.a), self.b) * 0.5
        return torch.tanh(scores / 20.0) * 20.0


@cache
def _decoder(compute: str) -> tuple[Decoder, Forward]:
    torch.manual_seed(0)
    model = Decoder().eval()
    forward = from_torch(model, {"ids": torch.randint(0, CLASSES, (2, 5))})
    return model, quantize(forward, Quantization(compute, smallest=1024))[0]


@pytest.mark.parametrize(("compute", "rel", "off"), [("fp32", 1e-5, 1e-5), ("int8", 3e-3, 0.02), ("int4", 0.1, 0.3)])
def test_a_tied_head_with_a_pair_bias_and_soft_cap(compute: str, rel: float, off: float) -> None:
    """Loss and gradients are torch's, with several chunks and with one: in fp32 also below the head."""
    model, forward = _decoder(compute)
    step = compile_step(forward, CausalLM(), SGD())
    assert len(_loops(step)) == 1 and not _wide(step)
    for rows, length in ((21, 9), (3, 4)):
        ids = torch.randint(0, CLASSES, (rows, length), generator=torch.Generator().manual_seed(rows))
        labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3, -100)
        model.zero_grad()
        loss = _shifted(model(ids), labels)
        loss.backward()
        result = run(step, {"ids": ids, "labels": labels})
        assert result.loss == pytest.approx(loss.item(), rel=rel)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and (compute == "fp32" or "blocks" not in name):
                want = parameter.grad.numpy()
                distance = np.linalg.norm(result.gradients[name] - want) / np.linalg.norm(want)
                assert distance < off, name


def test_the_predicted_peak_has_one_chunk_of_logits() -> None:
    """At any size the estimate contains a few chunks of logits, and none of the whole batch."""
    peaks = activation_peaks(_step("causal-lm")[1].graphs["train"])
    chunk = NORMAL.logits * CLASSES * 4
    assert chunk < max(peak.get("", 0) for peak in peaks) < 8 * chunk
    assert all(count < CLASSES for peak in peaks for name, count in peak.items() if name)
    rows = 6 * 4 * FEATURES  # bytes: gradients of chunks are together as large as the rows
    assert all(peak.get("batch*sequence", 0) < rows for peak in peaks)
