"""Bottleneck adapters: small networks between the layers of a frozen one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from edgepeft.methods.base import MethodError, matches, out_of_range, train_only, trained_head
from edgepeft.methods.support.bottlenecks import ACTIVATIONS, Behind, Beside, Bottleneck, Reader
from edgepeft.sources.architectures import Part, parts_of

PLACEMENTS = ("pfeiffer", "houlsby", "parallel")


@dataclass(frozen=True)
class Adapter:
    """``h + up(f(down(h)))`` behind frozen layers; the model starts as it was, because ``up`` starts at zero.

    Attributes:
        placement: in a transformer's blocks. ``pfeiffer``: behind the feed-forward part (Pfeiffer et al., EACL 2021);
            ``houlsby``: behind attention too (Houlsby et al., ICML 2019); ``parallel``: beside the feed-forward part,
            from its input, times 4 (He et al., ICLR 2022). Other networks get one behind each layer.
        reduction: width of the layer divided by that of the bottleneck.
        activation: ``relu``, ``gelu``, ``silu`` or ``tanh``.
        targets: names of layers, or patterns, to put an adapter behind, instead of those found.
        head: names of modules that train whole; ``None`` finds the head of a classifier.
    """

    name: ClassVar[str] = "adapter"
    placement: str = "pfeiffer"
    reduction: float = 16.0
    activation: str = "relu"
    targets: tuple[str, ...] | None = None
    head: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise out_of_range("placement", self.placement, " or ".join(PLACEMENTS))
        if self.activation not in ACTIVATIONS:
            raise out_of_range("activation", self.activation, " or ".join(ACTIVATIONS))
        if self.reduction < 1:
            raise out_of_range("reduction", self.reduction, "1 or more")

    def attach(self, model: nn.Module) -> nn.Module:
        head = trained_head(model, self.head)
        parts = [] if self.targets is not None else list(parts_of(model))
        if parts:
            for part in self._wanted(parts, model):
                self._insert(model, part)
        else:
            for name in self._layers(model, head):
                self._wrap(model, name)
        adapters = [name for name, module in model.named_modules() if isinstance(module, Bottleneck)]
        train_only(model, [*adapters, *head])
        return model

    def _wanted(self, parts: Sequence[Part], model: nn.Module) -> list[Part]:
        """Feed-forward parts, and attention too for ``houlsby``; attention alone where experts are the other part."""
        forward = [part for part in parts if part.kind == "ffn"]
        if self.placement == "parallel" and not forward:
            raise MethodError(
                "method-does-not-fit",
                f"{type(model).__name__} has no feed-forward part that an adapter could stand beside.",
                context=None,
                hint="choose the placement pfeiffer, or name targets.",
            )
        return list(parts) if self.placement == "houlsby" or not forward else forward

    def _insert(self, model: nn.Module, part: Part) -> None:
        if self.placement != "parallel":
            self._wrap(model, part.last)
            return
        reader = Reader(model.get_submodule(part.first))
        model.set_submodule(part.first, reader)
        last = model.get_submodule(part.last)
        width, inputs = _width(last), _input_width(reader.base)
        model.set_submodule(part.last, Beside(last, self._bottleneck(inputs, width), reader))

    def _wrap(self, model: nn.Module, name: str) -> None:
        layer = model.get_submodule(name)
        kernel = _rank(layer)
        width = _width(layer)
        model.set_submodule(name, Behind(layer, self._bottleneck(width, width, kernel)))

    def _bottleneck(self, inputs: int, outputs: int, kernel: int = 0) -> Bottleneck:
        return Bottleneck(inputs, max(1, round(inputs / self.reduction)), outputs, ACTIVATIONS[self.activation], kernel)

    def _layers(self, model: nn.Module, head: Sequence[str]) -> list[str]:
        """Names of the layers of a network that is no transformer, or those asked for."""
        fitting = [name for name, module in model.named_modules() if name and _fits(module)]
        if self.targets is not None:
            chosen = [name for name in fitting if any(_named(name, target) for target in self.targets)]
        else:
            chosen = [name for name in fitting if not any(matches(name, part) for part in head)]
        if not chosen:
            raise MethodError(
                "method-does-not-fit",
                f"{type(model).__name__} has no layer to put an adapter behind.",
                context=f"targets: {', '.join(self.targets)}" if self.targets else "looked outside the head",
                hint=f"choose targets among: {', '.join(fitting[:12]) or 'there is none'}.",
            )
        return chosen


def _fits(module: nn.Module) -> bool:
    plain = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or type(module).__name__ == "Conv1D"
    return isinstance(module, (nn.LSTM, nn.GRU)) or (plain and getattr(module, "groups", 1) == 1)


def _named(name: str, target: str) -> bool:
    return matches(name, target) or name.endswith(f".{target}")


def _rank(layer: nn.Module) -> int:
    """Dimensions of the kernel; 0 of a layer over the last axis."""
    return len(layer.kernel_size) if hasattr(layer, "kernel_size") else 0


def _width(layer: nn.Module) -> int:
    """Channels or features that a layer gives."""
    if isinstance(layer, (nn.LSTM, nn.GRU)):
        return (getattr(layer, "proj_size", 0) or layer.hidden_size) * (2 if layer.bidirectional else 1)
    for name in ("out_features", "out_channels", "nf"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    raise AssertionError(type(layer).__name__)


def _input_width(layer: nn.Module) -> int:
    """Features that a linear layer reads."""
    return int(layer.in_features) if hasattr(layer, "in_features") else int(layer.weight.shape[0])
