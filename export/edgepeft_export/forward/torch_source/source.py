"""The frozen tensors of a torch module: the state that its forward reads and does not train."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from edgepeft_export.forward.function_mode import OperatorMode
from edgepeft_export.forward.identity import SourceTensor, of_parts
from edgepeft_export.forward.torch_source.half import HALF
from edgepeft_export.forward.torch_source.reference import Tensors


class Reads(OperatorMode):
    """Record which storages the operators in its context read."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def call(self, operator: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        self.storages.update(_storage(leaf) for leaf in tree_leaves((args, dict(kwargs))) if type(leaf) in _DENSE)
        return operator(*args, **kwargs)


def read_tensors(model: nn.Module, trainable: Tensors, views: Collection[str], reads: Reads) -> dict[str, Tensor]:
    """The parameters and persistent buffers that a forward reads, by name.

    Args:
        model: The module, with its adapter attached.
        trainable: The trainable tensors, by name. They are returned too, but under one name each.
        views: Names of views of trainable tensors, which are left out.
        reads: Recorded over a forward pass. Tensors of a module that a method has replaced are not read.
    """
    trained = {tensor.data_ptr(): name for name, tensor in trainable.items()}
    return {
        name: value.detach()
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
        and name not in views
        and _storage(value) in reads.storages
        and trained.get(value.data_ptr(), name) == name
    }


def hashed(tensors: Tensors) -> Future[tuple[SourceTensor, ...]]:
    """Describe tensors in a thread: hashing the weights of a language model takes seconds, exporting it one core."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(lambda: tuple(_described(name, tensor) for name, tensor in tensors.items()))
    pool.shutdown(wait=False)
    return future


def _described(name: str, tensor: Tensor) -> SourceTensor:
    """Describe a tensor, in float32 where it is of half precision, of which a part is converted at a time."""
    flat = tensor.contiguous().reshape(-1)
    wide = torch.float32 if tensor.dtype in HALF else tensor.dtype
    dtype = torch.empty(0, dtype=wide).numpy().dtype
    return of_parts(name, dtype, tuple(tensor.shape), (part.to(wide).numpy() for part in flat.split(_AT_ONCE)))


_AT_ONCE = 1 << 20
"""Numbers that are converted at a time."""

_DENSE = (Tensor, nn.Parameter, nn.Buffer)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr()) if tensor.layout == torch.strided else 0
