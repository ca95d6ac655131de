"""The losses by name in torch, as a reference for what was compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepeft_runtime.files.schema import Json


def loss_of(kind: str, settings: Json, output: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of a batch, by the loss of that name in a manifest."""
    with torch.no_grad():
        return _BY_KIND[kind](output.float(), labels, settings)


def _cross_entropy(output: Tensor, labels: Tensor, settings: Json) -> Tensor:
    weights = settings.get("class_weights")
    return F.cross_entropy(
        output.movedim(settings.get("class_axis", -1), 1),
        labels,
        None if weights is None else torch.tensor(weights),
        ignore_index=settings["ignore_index"],
        label_smoothing=settings["label_smoothing"],
    )


def _causal_lm(output: Tensor, labels: Tensor, settings: Json) -> Tensor:
    return _cross_entropy(output[:, :-1], labels[:, 1:], settings)


def _bce(output: Tensor, labels: Tensor, settings: Json) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, labels, pos_weight=torch.tensor(settings["pos_weight"]))


_BY_KIND: dict[str, Callable[[Tensor, Tensor, Json], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "causal_lm": _causal_lm,
    "bce_with_logits": _bce,
    "mse": lambda output, labels, _: F.mse_loss(output, labels),
    "l1": lambda output, labels, _: F.l1_loss(output, labels),
}
