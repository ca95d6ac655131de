"""Lets the export step in when a model calls a function of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from torch.overrides import TorchFunctionMode

Function = Callable[..., object]


class FunctionMode(TorchFunctionMode):  # type: ignore[misc]  # torch is not type-checked here
    """While it is active, every call of a function of torch goes to :meth:`call`."""

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        """Return what the call is to return. Arguments that are no tensors are passed as they are."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Tensor, ...] = (),
        kwargs: Mapping[str, Tensor] | None = None,
    ) -> object:
        return self.call(func, args, kwargs or {})
