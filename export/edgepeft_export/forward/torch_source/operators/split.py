"""Exports parts of a tensor whose axis has a free size as slices, because the exporter writes a sequence of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgepeft_export.forward.function_mode import Function, FunctionMode

_SPLITS = (torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.tensor_split, Tensor.tensor_split)


class SlicedParts(FunctionMode):
    """While active, ``chunk`` and ``split`` along an axis of free size are slices."""

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        parts: Any = function(*args, **kwargs)
        if function not in _SPLITS:
            return parts
        tensor: Any = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
        axis: Any = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        if not isinstance(tensor.shape[axis], torch.SymInt):
            return parts
        slices, start = [], 0
        for part in parts:
            size = part.shape[axis]
            slices.append(tensor.narrow(axis, start, size))
            start = start + size
        return tuple(slices)
