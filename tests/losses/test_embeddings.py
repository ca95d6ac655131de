"""Losses over embeddings have torch's values and gradients, of one output with all or of an output for each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgepeft_export.errors import LossError
from edgepeft_export.losses import Loss
from edgepeft_export.losses.builtin.multiple_negatives import MultipleNegatives
from tests.support.linear_graphs import FEATURES, compiled, leaves, linear, run, torch_logits

ROWS = 4
Oracle = Callable[..., Tensor]
"""The loss of each example, from the embeddings of all examples by their index, and the labels."""


def _ranking(scale: float = 20.0, *, cosine: bool = True, symmetric: bool = False) -> Oracle:
    def oracle(anchors: Tensor, *others: Tensor) -> Tensor:
        def unit(x: Tensor) -> Tensor:
            return functional.normalize(x, dim=-1) if cosine else x

        scores = scale * unit(anchors) @ unit(torch.cat(others)).T
        labels = torch.arange(len(anchors))
        loss = functional.cross_entropy(scores, labels, reduction="none")
        if not symmetric:
            return loss
        back = functional.cross_entropy(scores[:, : len(anchors)].T, labels, reduction="none")
        return (loss + back) / 2

    return oracle


UNLABELLED: dict[str, tuple[Loss, Oracle, int]] = {
    "ranking": (MultipleNegatives(), _ranking(), 2),
    "hard-negatives": (MultipleNegatives(5.0), _ranking(5.0), 4),
    "dot": (MultipleNegatives(1.0, similarity="dot"), _ranking(1.0, cosine=False), 2),
    "symmetric": (MultipleNegatives(symmetric=True), _ranking(symmetric=True), 3),
}


def _inputs(embeddings: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, embeddings, FEATURES, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", UNLABELLED)
def test_values_and_gradients_are_those_of_torch(name: str, weighted: bool) -> None:
    """With and without weights of examples, for embeddings on an axis of one output."""
    loss, oracle, count = UNLABELLED[name]
    weights = torch.tensor([1.0, 0.0, 3.0, 0.5]) if weighted else torch.ones(ROWS)
    if weighted:
        loss = type(loss)(**{**loss.values(), "example_weights": "weights"})
    forward, x = linear("tokens"), _inputs(count)
    parameters = leaves(forward)
    expected = (oracle(*torch_logits(x, parameters).unbind(1)) * weights).sum() / weights.sum()
    expected.backward()
    result = run(compiled(forward, loss), {"x": x, **({"weights": weights} if weighted else {})})
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    for key, tensor in parameters.items():
        assert tensor.grad is not None
        np.testing.assert_allclose(result.gradients[key], tensor.grad.numpy(), rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["ranking", "symmetric"])
def test_embeddings_may_be_outputs_of_their_own(name: str) -> None:
    """Two outputs [batch, width] are anchors and positives."""
    loss, oracle, _ = UNLABELLED[name]
    forward, x = linear(second=True), _inputs(1)[:, 0]
    parameters = leaves(forward)
    logits = torch_logits(x, parameters)
    expected = oracle(logits, logits**2).mean()
    expected.backward()
    result = run(compiled(forward, loss), {"x": x})
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    assert parameters["w"].grad is not None
    np.testing.assert_allclose(result.gradients["w"], parameters["w"].grad.numpy(), rtol=1e-4, atol=1e-5)


def test_an_embedding_of_zeros_has_a_finite_gradient() -> None:
    """A vector without a direction does not divide by 0."""
    forward = linear("tokens")
    forward.parameters["b"][...] = 0.0
    result = run(
        compiled(forward, MultipleNegatives()), {"x": _inputs(2) * torch.tensor([0.0, 1, 1, 1])[:, None, None]}
    )
    assert np.isfinite(result.loss)
    assert all(np.isfinite(gradient).all() for gradient in result.gradients.values())


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_a_model_that_returns_no_embeddings_is_refused(kind: str) -> None:
    """One vector per example has no counterpart, and images are no embeddings."""
    with pytest.raises(LossError) as failure:
        compiled(linear(kind), MultipleNegatives())
    assert failure.value.code == "embeddings"
    assert "logits" in str(failure.value.context)
