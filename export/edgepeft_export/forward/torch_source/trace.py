"""Names the torch function that causes a difference: the first whose result is missing from the exported graph.

Only a sample of every result is kept, so that the search needs no more memory than the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import resolve_name

from edgepeft_export.forward.function_mode import Function, FunctionMode
from edgepeft_export.verification.compare import Array, Arrays, difference
from edgepeft_export.verification.graph import inner_values

_SAMPLED = 1024
"""Number of sampled elements of a result."""

_SAME = 1e-3
"""Largest relative difference of two results that count as equal."""

Sample = tuple[int, NDArray[np.float32]]
"""Number of elements, and some of them."""


@dataclass(frozen=True)
class _Result:
    function: str
    module: str
    sample: Sample


def first_difference(model: ir.Model, run: Callable[[], object], feeds: Arrays) -> str:
    """Name the torch function, and its module, with the first result that is not in the graph.

    Args:
        model: the exported graph.
        run: runs the torch function.
        feeds: the graph's inputs for the same results.
    """
    with _Recorder() as recorder, _Modules(recorder):
        run()
    there = _graph_samples(model, feeds)
    wrong = None
    for result in reversed(recorder.results):
        if any(_equal(result.sample, other) for other in there.get(result.sample[0], ())):
            break
        wrong = result
    if wrong is None:
        return "no single function of the model could be named."
    where = f"module {wrong.module}" if wrong.module else "the outermost forward"
    return f"The first result that differs is that of {wrong.function}, in {where}."


def _graph_samples(model: ir.Model, feeds: Arrays) -> dict[int, list[Sample]]:
    floats = [
        str(value.name)
        for node in model.graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and value.name
    ]
    samples: dict[int, list[Sample]] = {}
    try:
        for _, array in inner_values(model, feeds, floats):
            samples.setdefault(array.size, []).append(_sample(array))
    except Exception:
        pass
    return samples


def _sample(array: Array) -> Sample:
    flat = array.reshape(-1)
    return array.size, flat[:: max(1, array.size // _SAMPLED)].astype(np.float32)


def _equal(one: Sample, other: Sample) -> bool:
    return one[0] == other[0] and difference(one[1], other[1]) <= _SAME


class _Recorder(FunctionMode):
    """Keeps a sample of every float result of a function, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[_Result] = []
        self.module = ""

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if (
            isinstance(result, Tensor)
            and result.is_floating_point()
            and result.numel()
            and name not in ("__get__", "__set__")
        ):
            values = result.detach().float().contiguous().numpy()
            self.results.append(_Result(resolve_name(function) or name, self.module, _sample(values)))
        return result


class _Modules:
    """Pass the running module to a recorder."""

    def __init__(self, recorder: _Recorder) -> None:
        self._recorder = recorder
        self._names: dict[nn.Module, str] = {}
        self._stack: list[str] = []

    def __enter__(self) -> None:
        self._hooks = [
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(self._leave, always_call=True),
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, _: object) -> None:
        if not self._stack:
            self._names = {inner: name for name, inner in module.named_modules()}
        self._stack.append(self._recorder.module)
        self._recorder.module = self._names.get(module, type(module).__name__)

    def _leave(self, *_: object) -> None:
        self._recorder.module = self._stack.pop()


__all__ = ["first_difference"]
