"""The frozen tensors of a torch module: the state that its forward reads and does not train."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgepeft_export.forward.identity import SourceTensor, of_array
from edgepeft_export.forward.torch_source.reference import Tensors, array


class Reads(TorchDispatchMode):  # type: ignore[misc]  # torch is not type-checked here
    """Record which storages the operators in its context read."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.storages.update(_storage(leaf) for leaf in tree_leaves((args, kwargs)) if type(leaf) in _DENSE)
        return func(*args, **(kwargs or {}))


def source_of(model: nn.Module, trainable: Tensors, views: Collection[str], reads: Reads) -> tuple[SourceTensor, ...]:
    """Describe the parameters and persistent buffers that a forward reads, one by one.

    Args:
        model: The module, with its adapter attached.
        trainable: The trainable tensors, by name. They are described too, but under one name each.
        views: Names of views of trainable tensors, which are left out.
        reads: Recorded over a forward pass. Tensors of a module that a method has replaced are not read.
    """
    trained = {tensor.data_ptr(): name for name, tensor in trainable.items()}
    return tuple(
        of_array(name, array(value))
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
        and name not in views
        and _storage(value) in reads.storages
        and trained.get(value.data_ptr(), name) == name
    )


_DENSE = (Tensor, nn.Parameter, nn.Buffer)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr()) if tensor.layout == torch.strided else 0
