"""Low-rank adaptation of recurrent networks, which Hugging Face ``peft`` does not have.

A pair per weight matrix, all gates in one: of an LSTM ``W + (alpha / rank) B A`` with A [rank, in], B [4·hidden, rank],
of a GRU B [3·hidden, rank]. All steps share a weight, so it is adapted once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgepeft.methods.support.attached_pair import AttachedPair

WEIGHTS = ("weight_ih", "weight_hh")
"""Input to gates, and hidden state to gates; each layer and direction has both."""


class LoraRecurrent(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """A frozen ``nn.LSTM`` or ``nn.GRU`` whose weight matrices have low-rank pairs; is called as the network is.

    Args:
        base_layer: is frozen.
        rank: of the pairs.
        alpha: the pairs' scale is ``alpha / rank``.
        weights: which matrices have pairs: of :data:`WEIGHTS`.
    """

    def __init__(self, base_layer: nn.RNNBase, rank: int, alpha: float, weights: Sequence[str] = WEIGHTS) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.scaling = alpha / rank
        adapted = {name: w for name, w in base_layer.named_parameters() if name.startswith(tuple(weights))}
        self.lora_A = nn.ParameterDict({name: w.new_empty(rank, w.shape[1]) for name, w in adapted.items()})
        self.lora_B = nn.ParameterDict({name: w.new_zeros(w.shape[0], rank) for name, w in adapted.items()})
        for matrix in self.lora_A.values():
            nn.init.kaiming_uniform_(matrix, a=5**0.5)

    def __getattr__(self, name: str) -> Any:
        """``batch_first``, ``hidden_size`` and what else the network has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def pairs(self) -> Iterator[AttachedPair]:
        """Yield the pair of each adapted matrix."""
        for name, matrix in self.lora_A.items():
            yield AttachedPair(matrix, self.lora_B[name], matrix.shape[0], self.scaling, weight=name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.base_layer, self.adapted(), args, kwargs)

    def adapted(self) -> dict[str, Tensor]:
        """The weights with their pairs added."""
        return {
            name: self.base_layer.get_parameter(name) + (self.lora_B[name] @ matrix) * self.scaling
            for name, matrix in self.lora_A.items()
        }


def recurrent_modules(model: nn.Module) -> list[str]:
    """Names of the LSTM and GRU networks in a model that can be adapted (those with projections cannot be exported)."""
    return [
        name
        for name, module in model.named_modules()
        if name and isinstance(module, nn.LSTM | nn.GRU) and not module.proj_size and not name.endswith("base_layer")
    ]


def attach_recurrent(
    model: nn.Module, names: Sequence[str], rank: int, alpha: float, weights: Sequence[str] = WEIGHTS
) -> None:
    """Put pairs beside the weights of the recurrent networks of these names, in place.

    Args:
        model: holds them, and is not one itself.
        names: of modules.
        rank, alpha, weights: of :class:`LoraRecurrent`.
    """
    for name in names:
        parent, _, last = name.rpartition(".")
        adapted = LoraRecurrent(model.get_submodule(name), rank, alpha, weights)
        setattr(model.get_submodule(parent), last, adapted)
