"""Losses over embeddings have torch's values and gradients, of one output with all or of an output for each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgepeft_export.errors import LossError
from edgepeft_export.losses import Contrastive, CosineEmbedding, CosineSimilarity, Loss, MultipleNegatives, Triplet
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


def _triplet(margin: float) -> Oracle:
    return lambda *x: functional.triplet_margin_loss(*x, margin=margin, reduction="none")


def _cosine_triplet(margin: float) -> Oracle:
    def distance(x: Tensor, y: Tensor) -> Tensor:
        return 1 - functional.cosine_similarity(x, y)

    return lambda a, p, n: functional.triplet_margin_with_distance_loss(
        a, p, n, distance_function=distance, margin=margin, reduction="none"
    )


UNLABELLED |= {
    "triplet": (Triplet(), _triplet(1.0), 3),
    "triplet-margin": (Triplet(3.0), _triplet(3.0), 3),
    "triplet-cosine": (Triplet(0.3, "cosine"), _cosine_triplet(0.3), 3),
}


def _contrastive(margin: float, distance: Callable[[Tensor, Tensor], Tensor]) -> Oracle:
    def oracle(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        d, similar = distance(x, y), (labels > 0).float()
        return (similar * d**2 + (1 - similar) * functional.relu(margin - d) ** 2) / 2

    return oracle


def _cosine_embedding(margin: float) -> Oracle:
    return lambda x, y, labels: functional.cosine_embedding_loss(
        x, y, torch.where(labels > 0, 1, -1), margin, reduction="none"
    )


LABELLED: dict[str, tuple[Loss, Oracle]] = {
    "cosine-embedding": (CosineEmbedding(), _cosine_embedding(0.0)),
    "cosine-embedding-margin": (CosineEmbedding(-0.5), _cosine_embedding(-0.5)),
    "cosine-similarity": (CosineSimilarity(), lambda x, y, z: (functional.cosine_similarity(x, y) - z) ** 2),
    "contrastive": (Contrastive(), _contrastive(0.5, lambda x, y: 1 - functional.cosine_similarity(x, y))),
    "contrastive-euclidean": (Contrastive(4.0, "euclidean"), _contrastive(4.0, functional.pairwise_distance)),
}


def _inputs(embeddings: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, embeddings, FEATURES, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", UNLABELLED)
def test_values_and_gradients_are_those_of_torch(name: str, weighted: bool) -> None:
    """With and without weights of examples, for embeddings on an axis of one output."""
    loss, oracle, count = UNLABELLED[name]
    _assert_same(loss, oracle, {"x": _inputs(count)}, weighted)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LABELLED)
def test_losses_of_pairs_are_those_of_torch(name: str, weighted: bool) -> None:
    """Labels of 1 are similar pairs; those of 0 and -1 are not."""
    loss, oracle = LABELLED[name]
    _assert_same(loss, oracle, {"x": _inputs(2), "labels": torch.tensor([1.0, 0.0, -1.0, 1.0])}, weighted)


def _assert_same(loss: Loss, oracle: Oracle, batch: dict[str, Tensor], weighted: bool) -> None:
    weights = torch.tensor([1.0, 0.0, 3.0, 0.5]) if weighted else torch.ones(ROWS)
    if weighted:
        loss = type(loss)(**{**loss.values(), "example_weights": "weights"})
    forward, parameters = linear("tokens"), leaves(linear("tokens"))
    labels = [batch["labels"]] if "labels" in batch else []
    expected = (oracle(*torch_logits(batch["x"], parameters).unbind(1), *labels) * weights).sum() / weights.sum()
    expected.backward()
    result = run(compiled(forward, loss), {**batch, **({"weights": weights} if weighted else {})})
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


@pytest.mark.parametrize("loss", [Triplet(), Contrastive(1.0, "euclidean"), CosineEmbedding()])
def test_equal_embeddings_have_finite_gradients(loss: Loss) -> None:
    """The distance of a vector to itself is 0, where a square root has no derivative."""
    x = _inputs(1).expand(-1, 3, -1).contiguous()
    batch = {"x": x} if isinstance(loss, Triplet) else {"x": x[:, :2], "labels": torch.ones(ROWS)}
    result = run(compiled(linear("tokens"), loss), batch)
    assert np.isfinite(result.loss)
    assert all(np.isfinite(gradient).all() for gradient in result.gradients.values())


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_a_model_that_returns_no_embeddings_is_refused(kind: str) -> None:
    """One vector per example has no counterpart, and images are no embeddings."""
    with pytest.raises(LossError) as failure:
        compiled(linear(kind), MultipleNegatives())
    assert failure.value.code == "embeddings"
    assert "logits" in str(failure.value.context)
