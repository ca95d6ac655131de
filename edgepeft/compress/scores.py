"""Score the importance of units and of single weights, for all architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgepeft.compress.errors import NoCalibrationLoss
from edgepeft.compress.groups import Group, Slices, input_axis, is_conv, is_matrix
from edgepeft.compress.settings import Pruning
from edgepeft_export.errors import NoCalibration

Batch = Mapping[str, Tensor]
LossOf = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Scorer:
    """Computes importance from weights and from statistics of calibration data.

    Attributes:
        score: ``magnitude``, ``taylor`` or ``wanda``.
        gradients: Gradients of each batch's loss, by the identity of the weight (``taylor``).
        norms: L2 norm of each input of a layer over all calibration data, by the identity of the layer (``wanda``).
    """

    score: str
    gradients: Mapping[int, Sequence[Tensor]] = field(default_factory=dict)
    norms: Mapping[int, Tensor] = field(default_factory=dict)

    def units(self, group: Group) -> Tensor:
        """Return the importance of each unit, float64 [units]."""
        total = torch.zeros(group.units, dtype=torch.float64)
        for part in group.slices:
            if self.score == "magnitude" and part.scored:
                total += _per_unit(part, part.value().detach().double() ** 2)
            elif self.score == "wanda" and part.reads:
                total += _per_unit(part, self.single(part.module).double() ** 2)
        return self._taylor(group) if self.score == "taylor" else total

    def _taylor(self, group: Group) -> Tensor:
        """Return |sum of w dL/dw| over the weights that read a unit: the first-order change of the loss without it."""
        readers = [part for part in group.slices if part.reads]
        batches = max((len(self.gradients.get(id(part.value()), ())) for part in readers), default=0)
        total = torch.zeros(group.units, dtype=torch.float64)
        for batch in range(batches):
            products = [part.value().detach() * self.gradients[id(part.value())][batch] for part in readers]
            total += sum(_per_unit(p, x.double()) for p, x in zip(readers, products, strict=True)).abs()
        return total

    def single(self, module: nn.Module) -> Tensor:
        """Return the importance of each single weight of a layer, of the weight's shape."""
        weight = module.weight.detach()
        if self.score == "taylor":
            return sum((weight * g).abs() for g in self.gradients[id(module.weight)])
        if self.score == "wanda":
            shape = [1] * weight.dim()
            shape[input_axis(module)] = weight.shape[input_axis(module)]
            norms = self.norms[id(module)]
            return weight.abs() * (norms.reshape(shape) if len(norms) == max(shape) else norms.mean())
        return weight.abs()


def make_scorer(model: nn.Module, pruning: Pruning, calibration: Iterable[Batch] | None, loss: LossOf | None) -> Scorer:
    """Return a scorer, with statistics of the calibration data if its score needs them.

    Raises:
        PruneError: Data are needed and there are none, or no loss can be computed from them.
    """
    if pruning.score == "magnitude":
        return Scorer("magnitude")
    batches = list(calibration or ())
    if not batches:
        raise NoCalibration(
            f"The score '{pruning.score}' needs calibration data.",
            context=None,
            hint="pass some batches like those of training, or choose score=magnitude, which needs none.",
        )
    with evaluating(model):
        if pruning.score == "taylor":
            return Scorer("taylor", gradients=_gradients(model, batches, loss or _own_loss))
        return Scorer("wanda", norms=_input_norms(model, batches))


def _per_unit(part: Slices, values: Tensor) -> Tensor:
    """Return the sums [units] of a tensor's elements that belong to each unit."""
    along = values.transpose(0, part.axis).flatten(1).sum(1) if values.dim() > 1 else values
    return along.cpu()[part.indices].sum(1)


def _own_loss(model: nn.Module, batch: Batch) -> Tensor:
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise NoCalibrationLoss(
            "The score 'taylor' needs a loss, and the model returns none for the calibration data.",
            context=f"the batch has {', '.join(batch)}",
            hint="add labels to the batches of a model of transformers, or give a loss: loss(model, batch).",
        )
    return loss


def _gradients(model: nn.Module, batches: Sequence[Batch], loss: LossOf) -> dict[int, list[Tensor]]:
    layers = [m for m in model.modules() if is_matrix(m) or is_conv(m)]
    weights = list({id(m.weight): m.weight for m in layers}.values())
    required = [w.requires_grad for w in weights]
    for weight in weights:
        weight.requires_grad_(True)
    seen: dict[int, list[Tensor]] = {id(w): [] for w in weights}
    for batch in batches:
        gradients = torch.autograd.grad(loss(model, batch), weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            seen[id(weight)].append(torch.zeros_like(weight) if gradient is None else gradient)
    for weight, needed in zip(weights, required, strict=True):
        weight.requires_grad_(needed)
    return seen


def _input_norms(model: nn.Module, batches: Sequence[Batch]) -> dict[int, Tensor]:
    sums: dict[int, Tensor] = {}

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        x = x.movedim(1, -1) if is_conv(module) else x
        sums[id(module)] = sums.get(id(module), torch.zeros(())) + (x.flatten(0, -2) ** 2).sum(0)

    layers = [m for m in model.modules() if is_matrix(m) or is_conv(m)]
    for layer in layers:
        sums[id(layer)] = torch.zeros(layer.weight.shape[input_axis(layer)])
    run_observed(model, layers, batches, observe)
    return {key: value.sqrt() for key, value in sums.items()}


def run_observed(
    model: nn.Module,
    layers: Iterable[nn.Module],
    batches: Iterable[Batch],
    observe: Callable[[nn.Module, tuple[Tensor, ...]], None],
) -> None:
    """Run the model on all batches, without gradients, and call ``observe`` with each layer and its inputs."""
    hooks = [layer.register_forward_pre_hook(observe) for layer in layers]
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Disable dropout and updates of running statistics."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
