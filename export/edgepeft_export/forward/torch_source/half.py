"""Runs a module in float32 whose large frozen tensors are in half precision, as their checkpoint has them.

Each is converted for the operator that reads it, and then dropped. The results are those of ``module.float()``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_map

from edgepeft_export.forward.function_mode import OperatorMode

HALF = (torch.float16, torch.bfloat16)

LARGE = 1 << 16
"""Frozen parameters of more elements stay in half precision, and are inputs of a trace."""


def in_float32(model: nn.Module) -> nn.Module:
    """Convert a module to float32, in place, but for its large parameters in half precision."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and not _stays(parameter):
            parameter.data = parameter.data.float()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[name] = buffer.float()
    return model


def widen_trainable(model: nn.Module) -> nn.Module:
    """Convert the parameters that train to float32, in place."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    return model


def keeps_half(model: nn.Module) -> bool:
    """Whether a module is one of ``in_float32`` with tensors in half precision: all of these are large."""
    tensors = [*model.parameters(), *model.buffers()]
    halves = [tensor for tensor in tensors if tensor.dtype in HALF]
    return bool(halves) and all(_stays(tensor) for tensor in halves)


def computing(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    """The context in which a module has to be run."""
    return ComputesInFloat32() if keeps_half(model) else contextlib.nullcontext()


def traced(tensor: Tensor) -> Tensor:
    """A tensor to trace with: for one of half precision, another of its shape in float32, never written."""
    return torch.empty(tensor.shape, dtype=torch.float32) if tensor.dtype in HALF else tensor


class ComputesInFloat32(OperatorMode):
    """While active, operators read half precision as float32, and none returns half precision but views of tensors."""

    def call(self, operator: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        if _is_view(operator) or operator._schema.is_mutable:
            return operator(*args, **kwargs)
        if operator is torch.ops.aten.embedding.default:  # converts the rows that it reads, not the table
            return _wide(operator(*args, **kwargs))
        return operator(*tree_map(_wide, args), **tree_map(_wide, dict(kwargs)))


def _stays(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.dtype in HALF and tensor.numel() > LARGE


def _wide(leaf: object) -> object:
    if isinstance(leaf, Tensor):
        return leaf.float() if leaf.dtype in HALF else leaf
    return torch.float32 if isinstance(leaf, torch.dtype) and leaf in HALF else leaf


def _is_view(operator: OpOverload) -> bool:
    return any(
        argument.alias_info is not None and not argument.alias_info.is_write for argument in operator._schema.arguments
    )
