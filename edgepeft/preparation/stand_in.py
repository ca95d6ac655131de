"""A module with the inputs and outputs of another, for what only needs to know how a model is fed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgepeft.sources.precision import in_single_precision
from edgepeft.sources.working_copy import working_copy
from edgepeft_export.forward.torch_source.half import computing
from edgepeft_export.forward.torch_source.lifted import named_outputs
from edgepeft_export.forward.torch_source.module import default_dynamic_axes, distinct_sizes
from edgepeft_export.forward.torch_source.reference import resized

Size = int | tuple[str, int]
"""A fixed size, or the input and axis that it equals."""


class StandIn(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """Returns tensors of one trained value.

    Args:
        outputs: Sizes and dtypes of the results, by name.
    """

    def __init__(self, outputs: Mapping[str, tuple[tuple[Size, ...], torch.dtype]]) -> None:
        super().__init__()
        self._outputs = outputs
        self.value = nn.Parameter(torch.ones(()))

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        read = self.value + 0 * sum(tensor.sum() for tensor in inputs.values())
        return {
            name: read.expand([size if isinstance(size, int) else inputs[size[0]].shape[size[1]] for size in sizes]).to(
                dtype
            )
            for name, (sizes, dtype) in self._outputs.items()
        }


def stand_in(model: nn.Module, inputs: Mapping[str, Tensor]) -> StandIn | None:
    """Run a module at two sizes, and return one with outputs of the same sizes.

    Args:
        model: The module. It does not change.
        inputs: An example.

    Returns:
        ``None`` if the module does not run at two sizes, or one of its results has a size that is neither fixed nor
        that of an input.
    """
    module, inputs = in_single_precision(working_copy(model), inputs, whole=False)
    axes = default_dynamic_axes(inputs)
    first = distinct_sizes(inputs, axes)
    second = resized(first, axes, 2)
    try:
        with torch.no_grad(), computing(module):
            results = [named_outputs(module.eval()(**given)) for given in (first, second)]
    except Exception:  # whatever the module raises
        return None
    free = {(first[name].shape[axis], second[name].shape[axis]): (name, axis) for name in axes for axis in axes[name]}
    outputs = {}
    for name, one in results[0].items():
        pairs = list(zip(one.shape, results[1][name].shape, strict=True))
        if any(a != b and (a, b) not in free for a, b in pairs):
            return None
        outputs[name] = tuple(a if a == b else free[a, b] for a, b in pairs), one.dtype
    return StandIn(outputs)
