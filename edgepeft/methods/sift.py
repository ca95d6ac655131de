"""Sparse increment fine-tuning, SIFT (Song et al., ICML 2024): a few elements of the model's own weights train."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft.methods.base import Method, check_patterns, matches, train_only, trained_head
from edgepeft.methods.errors import MethodDoesNotFit
from edgepeft.sources.architectures import head_modules
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    from torch import nn

    from edgepeft_export.forward import Forward
    from edgepeft_export.forward.sparse import ElementChoice, Indices

MASKS = ("gradient", "accumulated", "random", "magnitude")


@dataclass(frozen=True)
class Sift(Method):
    """The ``rate`` of each weight's elements with the largest gradient on the first batch train, and the task head.

    The choice of elements is final, so the optimizer's state stays valid. Updates contain only values and indices.
    ``edgepeft.pick`` picks on the workstation, by the gradient on proxy data.

    The mask ``gradient`` picks by the device's first batch, ``accumulated`` by the sizes of the gradients of the first
    ``batches``, ``random`` at random, and ``magnitude`` picks the largest weights (like SHiRA-WM).
    """

    name: ClassVar[str] = "sift"
    supports_onnx: ClassVar[bool] = True
    adds_parameters: ClassVar[bool] = False
    rate: float = setting(0.01, "Fraction of the elements of each weight that trains.", above=0, maximum=1)
    mask: str = setting("gradient", "Criterion that picks the elements.", choices=MASKS)
    batches: int = setting(8, "Batches whose gradients the mask 'accumulated' adds up.", minimum=1)
    weights: tuple[str, ...] | None = setting(
        None,
        "Parameters or modules, by name or pattern; by default all weights outside embeddings and the head.",
        option="weight-names",
    )
    head: tuple[str, ...] | None = setting(
        None, "Names of the modules that train in full; by default the head of a classifier."
    )
    seed: int = setting(0, "Seed of the method's random values.", minimum=0, option="method-seed")

    def attach(self, model: nn.Module) -> nn.Module:
        """Mark whole weights and the head; ``on_graph`` reduces the weights to the chosen elements."""
        train_only(model, [*self._targets(model), *trained_head(model, self.head)])
        return model

    def on_graph(self, forward: Forward, model: nn.Module | None, /) -> Forward:
        """Train elements of the marked weights instead of whole weights; for a file, of all named initializers."""
        from edgepeft_export.forward.sparse import train_elements

        targets = list(forward.parameters) if model is None else self._targets(model)
        chosen = {name: self._choice(name, forward.parameters[name]) for name in targets if name in forward.parameters}
        return train_elements(forward, chosen)

    def _targets(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters of which elements train."""
        if self.weights is not None:
            check_patterns(model, self.weights)
            patterns = self.weights
            return [name for name, _ in model.named_parameters() if any(matches(name, p) for p in patterns)]
        from torch import nn

        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        chosen = [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and id(parameter) not in tables and name.split(".")[0] not in head_modules(model)
        ]
        if not chosen:
            raise MethodDoesNotFit(
                f"{type(model).__name__} has no weight for SIFT to train.",
                context="searched for parameters of two or more dimensions outside embeddings and head",
                hint="name the parameters (weights).",
            )
        return chosen

    def _choice(self, name: str, weight: NDArray[np.generic]) -> ElementChoice:
        from edgepeft_export.forward.sparse import ElementChoice

        count = min(int(self.rate * weight.size) + 1, weight.size)
        batches = self.batches if self.mask == "accumulated" else 1
        return ElementChoice(count, self._indices(name, weight, count), batches)

    def _indices(self, name: str, weight: NDArray[np.generic], count: int) -> Indices | None:
        if self.mask == "random":
            draw = np.random.default_rng(
                [self.seed, zlib.crc32(name.encode())]
            )  # a seed per name, so that further names change nothing
            return np.sort(draw.choice(weight.size, count, replace=False)).astype(np.int32)
        from edgepeft_runtime.train.selection import largest

        return largest(np.abs(weight.reshape(-1)), count) if self.mask == "magnitude" else None
