"""A mode in which the export intercepts calls of torch functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from torch.overrides import TorchFunctionMode

Function = Callable[..., object]


class FunctionMode(TorchFunctionMode):  # type: ignore[misc]  # torch is not type-checked here
    """While active, every call of a torch function goes to ``call``."""

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        """Return the result of the call. Arguments that are no tensors are passed unchanged."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Tensor, ...] = (),
        kwargs: Mapping[str, Tensor] | None = None,
    ) -> object:
        return self.call(func, args, kwargs or {})
