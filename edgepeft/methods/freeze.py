"""Selective freezing: by name, by depth, or by the largest gain within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft.methods.base import Method, check_patterns, matches, train_only
from edgepeft.methods.errors import BadMethodSetting
from edgepeft.sources.architectures import blocks_of, head_modules
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Freeze(Method):
    """Trains some of the model's own parameters, given by pattern with ``*`` or by the name of a parameter or module.

    ``best`` chooses them by measurement.
    """

    name: ClassVar[str] = "freeze"
    adds_parameters: ClassVar[bool] = False
    train: tuple[str, ...] = setting(
        (), "Parameters or modules that train, by name or pattern; for an .onnx file, initializers, with any method."
    )
    freeze: tuple[str, ...] = setting((), "Parameters or modules that stay frozen, by name or pattern.")
    last_blocks: int | None = setting(
        None,
        "Number of last blocks of a transformer, or stages of another network, that train, with the head.",
        minimum=1,
    )

    def attach(self, model: nn.Module) -> nn.Module:
        if not self.train and not self.freeze and self.last_blocks is None:
            raise BadMethodSetting(
                "Method 'freeze' needs the parameters that train or those that are frozen.",
                context=None,
                hint="set train, freeze or last_blocks.",
            )
        check_patterns(model, self.freeze)
        chosen = train_only(model, [*self.train, *self._last(model)] or ["*"])
        trained = {name for name in chosen if not any(matches(name, pattern) for pattern in self.freeze)}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        return model

    def _last(self, model: nn.Module) -> list[str]:
        """Return the names of the last blocks and of the head."""
        if self.last_blocks is None:
            return []
        head = head_modules(model)
        blocks = [name for name in blocks_of(model) if name not in head]
        if not 1 <= self.last_blocks <= len(blocks):
            raise BadSetting("last_blocks", self.last_blocks, f"1 to {len(blocks)}: {', '.join(blocks)}")
        names = [name for name, _ in model.named_parameters()]
        wanted = [*blocks[-self.last_blocks :], *head]
        return [
            part for part in wanted if any(matches(name, part) for name in names)
        ]  # a tied head has no parameters of its own

    @classmethod
    def best(
        cls,
        model: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
        budget: int,
    ) -> Freeze:
        """Choose the parameters with the largest gain on proxy data that fit a memory budget.

        Args:
            model: The model. It does not change.
            batches: Proxy data for ``loss``. Activations are counted for the size of the first batch.
            loss: Function from ``(model, batch)`` to the mean loss.
            budget: Bytes that training may add to inference, as
                ``edgepeft.methods.support.contribution.best_under`` counts it.

        Raises:
            MethodError: No parameter fits.
        """
        from edgepeft.methods.support.contribution import best_under

        return cls(train=tuple(best_under(model, batches, loss, budget)))
