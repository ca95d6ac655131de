"""Exports an average pool whose window covers the whole image as a mean.

Releases of ONNX Runtime disagree on windows that are larger than the image, which torch cuts (``ceil_mode``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepeft_export.forward.function_mode import Function, FunctionMode

_AXES = {F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}


class MeanOfWhole(FunctionMode):
    """While active, pooling a whole image of known size is a mean."""

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        count = _AXES.get(function)
        if count is not None and _is_whole(count, *args, **kwargs):
            return args[0].mean(tuple(range(-count, 0)), keepdim=True)
        return function(*args, **kwargs)


def _is_whole(
    count: int,
    image: Tensor | None = None,
    kernel_size: int | Sequence[int] = 1,
    stride: object = None,  # noqa: ARG001  # there is one window
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,  # noqa: ARG001  # there is no padding
    divisor_override: int | None = None,
    **others: object,
) -> bool:
    """Whether a call has one window, larger than the image, that torch cuts to it."""
    kernel = [kernel_size] * count if isinstance(kernel_size, int) else list(kernel_size)
    if image is None or others or not ceil_mode or divisor_override is not None or padding not in (0, (0,) * count):
        return False
    sizes = list(image.shape[-count:])
    known = all(isinstance(size, int) and not isinstance(size, torch.SymInt) for size in sizes)
    return known and all(size <= window for size, window in zip(sizes, kernel * (count // len(kernel)), strict=True))
