"""Bottleneck adapters: small networks between the layers of a frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft.methods.base import Method, matches, train_only, trained_head
from edgepeft.methods.errors import MethodDoesNotFit
from edgepeft.sources.architectures import Part, parts_of
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    from torch import nn

PLACEMENTS = ("pfeiffer", "houlsby", "parallel")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")


@dataclass(frozen=True)
class Adapter(Method):
    """``h + up(f(down(h)))`` after frozen layers; the model starts unchanged, because ``up`` starts at zero.

    In a transformer's blocks, the placement ``pfeiffer`` puts an adapter after the feed-forward part (Pfeiffer et al.,
    EACL 2021), ``houlsby`` also after attention (Houlsby et al., ICML 2019), and ``parallel`` beside the feed-forward,
    reading its input, times 4 (He et al., ICLR 2022). Other networks get an adapter after each layer.
    """

    name: ClassVar[str] = "adapter"
    placement: str = setting("pfeiffer", "Position in a transformer's blocks.", choices=PLACEMENTS)
    reduction: float = setting(16.0, "Width of the layer divided by that of the bottleneck.", minimum=1)
    activation: str = setting("relu", "Function between the two matrices.", choices=ACTIVATIONS)
    target_modules: tuple[str, ...] | None = setting(
        None, "Names of layers, or patterns, to put an adapter after, instead of the default ones."
    )
    head: tuple[str, ...] | None = setting(
        None, "Names of the modules that train in full; by default the head of a classifier."
    )

    def attach(self, model: nn.Module) -> nn.Module:
        from edgepeft.methods.support.bottlenecks import Shape, added_to, put_after, put_parallel

        head = trained_head(model, self.head)
        shape = Shape(self.reduction, self.activation)
        parts = [] if self.target_modules is not None else list(parts_of(model))
        for part in self._wanted(parts, model) if parts else ():
            if self.placement == "parallel":
                put_parallel(model, part.first, part.last, shape)
            else:
                put_after(model, part.last, shape)
        for name in () if parts else self._layers(model, head):
            put_after(model, name, shape)
        train_only(model, [*added_to(model), *head])
        return model

    def _wanted(self, parts: Sequence[Part], model: nn.Module) -> list[Part]:
        """Feed-forward parts, and attention too for ``houlsby``; attention alone where experts are the other part."""
        forward = [part for part in parts if part.kind == "ffn"]
        if self.placement == "parallel" and not forward:
            raise MethodDoesNotFit(
                f"{type(model).__name__} has no feed-forward part for a parallel adapter.",
                context=None,
                hint="choose the placement pfeiffer, or name target_modules.",
            )
        return list(parts) if self.placement == "houlsby" or not forward else forward

    def _layers(self, model: nn.Module, head: Sequence[str]) -> list[str]:
        """Return the names of the target modules, by default all layers of a network that is not a transformer."""
        from edgepeft.methods.support.bottlenecks import fits

        fitting = [name for name, module in model.named_modules() if name and fits(module)]
        if self.target_modules is not None:
            chosen = [name for name in fitting if any(_named(name, target) for target in self.target_modules)]
        else:
            chosen = [name for name in fitting if not any(matches(name, part) for part in head)]
        if not chosen:
            raise MethodDoesNotFit(
                f"{type(model).__name__} has no layer to put an adapter after.",
                context=f"target_modules: {', '.join(self.target_modules or ('outside the head',))}",
                hint=f"choose target_modules among: {', '.join(fitting[:12]) or 'no layer fits'}.",
            )
        return chosen


def _named(name: str, target: str) -> bool:
    return matches(name, target) or name.endswith(f".{target}")
