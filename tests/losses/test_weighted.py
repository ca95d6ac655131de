"""Weighted sums of losses over several outputs have torch's values and gradients, and name their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import edgepeft
from edgepeft_export.errors import LossError
from edgepeft_export.losses import MSE, CrossEntropy, Huber, Term, WeightedSum, by_name
from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import SettingError
from tests.support.linear_graphs import CLASSES, FEATURES, compiled, leaves, linear, run, torch_logits

TEXT = "cross_entropy(logits) + 0.25 * huber(squares, delta=2.5)"
SUM = WeightedSum((Term(CrossEntropy(), outputs=("logits",)), Term(Huber(2.5), weight=0.25, outputs=("squares",))))


def _batch(rows: int = 4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (rows,), generator=draw)
    labels[0] = -100
    return {
        "x": torch.randn(rows, FEATURES, generator=draw),
        "logits_labels": labels,
        "squares_labels": torch.rand(rows, CLASSES, generator=draw),
    }


def test_values_and_gradients_are_those_of_torch() -> None:
    """Each term is a mean of its own, over the labels that count for it."""
    forward, batch = linear(second=True), _batch()
    parameters = leaves(forward)
    logits = torch_logits(batch["x"], parameters)
    expected = functional.cross_entropy(logits, batch["logits_labels"])
    expected = expected + 0.25 * functional.huber_loss(logits**2, batch["squares_labels"], delta=2.5)
    expected.backward()
    result = run(compiled(forward, SUM), batch)
    assert (result.loss, result.weight) == (pytest.approx(expected.item(), rel=1e-5), 4.0)
    for name, tensor in parameters.items():
        assert tensor.grad is not None
        np.testing.assert_allclose(result.gradients[name], tensor.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_a_term_without_labels_that_count_is_zero() -> None:
    """Where all classes are ignored, the other term remains."""
    batch = _batch()
    batch["logits_labels"].fill_(-100)
    result = run(compiled(linear(second=True), SUM), batch)
    alone = WeightedSum((SUM.terms[1],))
    del batch["logits_labels"]
    assert result.loss == pytest.approx(run(compiled(linear(second=True), alone), batch).loss, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (TEXT, SUM),
        ("mse(a,label=target)+2e-1*cross_entropy(b, label_smoothing=0.1)", None),
        ("2*mse", WeightedSum((Term(MSE(), 2.0),))),
    ],
)
def test_a_sum_is_written_as_text(text: str, wanted: WeightedSum | None) -> None:
    """Weights, outputs, settings and names of labels."""
    loss = by_name(text)
    assert isinstance(loss, WeightedSum)
    if wanted is None:
        wanted = WeightedSum((Term(MSE(), 1.0, ("a",), "target"), Term(CrossEntropy(label_smoothing=0.1), 0.2, ("b",))))
    assert loss == wanted


def test_a_setting_is_that_of_the_terms_that_have_it() -> None:
    """A term that names it keeps its own, and a setting of no term is refused."""
    text = "cross_entropy(logits) + 0.5*cross_entropy(squares, label_smoothing=0.3, label=logits_labels)"
    loss, batch = by_name(f"{text} + 0.1 * mse(squares)", label_smoothing=0.2), _batch()
    forward = linear(second=True)
    parameters = leaves(forward)
    logits, labels = torch_logits(batch["x"], parameters), batch["logits_labels"]
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.2)
    expected = expected + 0.5 * functional.cross_entropy(logits**2, labels, label_smoothing=0.3)
    expected = expected + 0.1 * functional.mse_loss(logits**2, batch["squares_labels"])
    assert run(compiled(forward, loss), batch).loss == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(SettingError, match="no setting 'label_smoothing'"):
        by_name("mse(a) + huber(b)", label_smoothing=0.1)


@pytest.mark.parametrize("text", ["mse +", "mse(", "0 * mse", "mse(a) mse(b)", "nothing(a)", "mse(a, delta=1)", "+"])
def test_what_is_no_sum_is_refused(text: str) -> None:
    """A text of another form, an unknown loss, and a setting that it does not have."""
    with pytest.raises(SettingError):
        by_name(text)


@pytest.mark.parametrize("text", ["mse(other)", "cross_entropy(logits, label=y) + mse(squares, label=y)"])
def test_terms_that_do_not_fit_are_refused(text: str) -> None:
    """An output that the model lacks, and one label of two kinds."""
    with pytest.raises(LossError) as failure:
        compiled(linear(second=True), by_name(text))
    assert failure.value.code == "loss-inputs"


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classes, self.number = nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"kind": self.classes(x), "size": self.number(x)[:, 0]}


def test_two_heads_train_and_are_evaluated(tmp_path: Path) -> None:
    """From one line of text, with accuracy for the classes of the first output."""
    torch.manual_seed(0)
    network = _Two()
    edgepeft.prepare(
        network,
        torch.zeros(2, 8),
        loss="cross_entropy(kind) + 0.1 * smooth_l1(size)",
        method="full",
        out=tmp_path / "b",
    )
    x = torch.randn(16, 8)
    kind, size = torch.randint(0, 4, (16,)), torch.randn(16)
    with torch.no_grad():
        outputs = network(x)
    expected = functional.cross_entropy(outputs["kind"], kind) + 0.1 * functional.smooth_l1_loss(outputs["size"], size)
    batch = {"x": x.numpy(), "kind_labels": kind.numpy(), "size_labels": size.numpy()}
    with Trainer.open(tmp_path / "b") as trainer:
        evaluation = trainer.evaluate(batch)
        assert evaluation.loss == pytest.approx(expected.item(), rel=1e-5)
        assert evaluation.accuracy == pytest.approx((outputs["kind"].argmax(1) == kind).float().mean().item())
        trainer.fit(batch, epochs=20, batch_size=16, lr=0.05)
        assert trainer.evaluate(batch).loss < 0.7 * evaluation.loss
