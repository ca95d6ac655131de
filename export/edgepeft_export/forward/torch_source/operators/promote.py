"""Converts integers before they are subtracted from a floating number (``1.0 - mask``), as the exporter cannot."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgepeft_export.forward.function_mode import Function, FunctionMode

_REVERSED = (Tensor.__rsub__, torch.rsub)


class PromoteIntegers(FunctionMode):
    """While active, a difference of a floating number and integers is one of floating numbers in the traced graph."""

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        if function in _REVERSED and len(args) > 1 and isinstance(args[1], float) and not args[0].is_floating_point():
            return function(args[0].to(torch.get_default_dtype()), *args[1:], **kwargs)
        return function(*args, **kwargs)
