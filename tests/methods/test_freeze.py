"""Freezing by depth, and by the best gain under a budget of memory."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from edgepeft.errors import MemoryBudgetTooSmall
from edgepeft.methods import Freeze, attach
from edgepeft.methods.errors import MethodError
from edgepeft.methods.support.contribution import PER_ELEMENT, best_under, contributions
from edgepeft_runtime.errors import SettingError
from tests.support.networks import NETWORKS, torch_loss


def _marked(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "blocks", "trained"),
    [
        ("bert", 1, ("bert.encoder.layer.1.", "classifier.")),
        ("gpt2", 1, ("transformer.h.1.",)),
        ("llama", 2, ("model.layers.0.", "model.layers.1.", "lm_head.")),
        ("cnn", 2, ("pointwise.", "norm2.", "classifier.")),
    ],
)
def test_the_last_blocks_and_the_head_train(name: str, blocks: int, trained: tuple[str, ...]) -> None:
    """Nothing below them does; a head that is tied to the embedding stays."""
    model = attach(Freeze(last_blocks=blocks), NETWORKS[name].model())
    marked = _marked(model)
    assert marked == {part for part, _ in model.named_parameters() if part.startswith(trained)}
    assert all(any(part.startswith(start) for part in marked) for start in trained)


@pytest.mark.parametrize("blocks", [0, 3])
def test_there_must_be_so_many_blocks(blocks: int) -> None:
    """BERT here has two."""
    with pytest.raises(SettingError, match="last_blocks"):
        attach(Freeze(last_blocks=blocks), NETWORKS["bert"].model())


def _loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["labels"])


def _problem() -> tuple[nn.Module, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    return model, [{"x": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 0])} for _ in range(3)]


def test_contributions_are_squared_gradients() -> None:
    """Like autograd's, averaged over the batches. Flags and mode of the model stay."""
    model, batches = _problem()
    model[0].requires_grad_(False)
    found = contributions(model, batches, _loss)
    expected = 0.0
    for batch in batches:
        model.zero_grad()
        _loss(model, batch).backward()
        expected += float(model[4].weight.grad.square().sum()) / 3
    assert found["4.weight"] == pytest.approx(expected)
    assert not model[0].weight.requires_grad and model.training


def test_the_best_set_fits_the_budget_and_grows_with_it() -> None:
    """More memory never promises less; with enough of it, everything trains."""
    model, batches = _problem()
    gains = contributions(model, batches, _loss)
    totals = []
    for budget in (1_000, 4_000, 12_000, 10**7):
        chosen = best_under(model, batches, _loss, budget)
        assert PER_ELEMENT * sum(model.get_parameter(name).numel() for name in chosen) <= budget
        totals.append(sum(gains[name] for name in chosen))
    assert totals == sorted(totals)
    assert set(chosen) == {name for name, _ in model.named_parameters()}


def test_activations_count() -> None:
    """A deep tensor that would fit by its own size is left out if the activations after it do not fit."""
    model, batches = _problem()
    first = PER_ELEMENT * 20  # 0.bias
    chosen = best_under(model, batches, _loss, first + 200)
    assert "0.bias" not in chosen and chosen


def test_a_budget_for_nothing_is_refused() -> None:
    """The error names the memory of the smallest parameter."""
    model, batches = _problem()
    with pytest.raises(MemoryBudgetTooSmall, match="No parameter can train"):
        best_under(model, batches, _loss, 10)
    with pytest.raises(MethodError, match="no batch"):
        contributions(model, [], _loss)


def test_the_choice_becomes_a_method() -> None:
    """Its names are settings, so that the bundle's provenance shows them."""
    network = NETWORKS["bert"]
    batches = [{**inputs, "labels": labels} for inputs, labels in network.batches(2)]

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return torch_loss(model, inputs, batch["labels"], network.loss)

    model = network.model()
    method = Freeze.best(model, batches, loss, 200_000)
    assert method.train
    assert _marked(attach(method, model)) == set(method.train)
