"""Convert a module in half or double precision to float32 before its export."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgepeft.sources.working_copy import working_copy
from edgepeft_export.forward.torch_source.half import computing, in_float32
from edgepeft_runtime.notices import notice

_OTHERS = (torch.float16, torch.bfloat16, torch.float64)


def in_single_precision(
    model: nn.Module, inputs: Mapping[str, Tensor], *, whole: bool
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Convert a module's tensors and its inputs to float32, if it runs so; else return both unchanged.

    A module that casts to half precision by itself may only run with its own weights. Its graph is converted to float32
    instead. A notice says what changes.

    Args:
        model: The model. It does not change.
        inputs: An example.
        whole: Whether large matrices are converted too. Otherwise they stay as they are, and each is converted when it
            is read: the module has to be run in the context ``computing`` of ``torch_source.half``.
    """
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *model.buffers())} & set(_OTHERS)
    single = {name: tensor.float() if tensor.dtype in _OTHERS else tensor for name, tensor in inputs.items()}
    if not dtypes:
        return model, dict(inputs)
    single_model = working_copy(model)
    single_model = single_model.float() if whole else in_float32(single_model)
    with computing(single_model):
        if not _runs(single_model, single):
            return model, dict(inputs)
    kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    notice(f"{type(model).__name__} has {kinds} tensors: they are converted to float32, in which devices compute.")
    return single_model, single


def _runs(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    return True
