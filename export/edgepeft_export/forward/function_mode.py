"""Modes in which the export intercepts calls of torch: of its functions, or of the operators below them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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


class OperatorMode(TorchDispatchMode):  # type: ignore[misc]  # torch is not type-checked here
    """While active, every operator that torch dispatches goes to ``call``."""

    def call(self, operator: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """Return the result of the operator."""
        raise NotImplementedError

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return self.call(func, args, kwargs or {})
