"""Tensors of a module that are views of one storage. They train as one tensor, in the graph as in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

from torch import Tensor, nn

from edgepeft_export.errors import SharedStorage


@dataclass(frozen=True)
class View:
    """A tensor of a module that shares the storage of one that trains.

    Attributes:
        owner: name of the parameter that trains for both.
        axes: the owner's axes in the order of the view's.
        start, shape: where the view lies in the flat owner, and its shape; ``None``: all of it.
        trains: whether gradients through the view count.
    """

    owner: str
    axes: tuple[int, ...]
    start: int | None
    shape: tuple[int, ...]
    trains: bool

    def of(self, owner: Tensor) -> Tensor:
        """The view of other values of the owner."""
        if self.start is None:
            view = owner.permute(self.axes)
        else:
            size = 1
            for length in self.shape:
                size *= length
            view = owner.reshape(-1)[self.start : self.start + size].reshape(self.shape)
        return view if self.trains else view.detach()


def views_of(model: nn.Module) -> dict[str, View]:
    """The views among a module's parameters and buffers, by name, without the owners of storages.

    Raises:
        ForwardError: two tensors overlap in a way that is no transposition and no slice.
    """
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    by_storage: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    views: dict[str, View] = {}
    for names in by_storage.values():
        trained = [name for name in names if tensors[name].requires_grad]
        if len(names) > 1 and trained:
            owner = max(trained, key=lambda name: (tensors[name].numel(), tensors[name].is_contiguous()))
            others = {name: tensors[name] for name in names if name != owner}
            views.update(_views(owner, tensors[owner], others))
    return views


def with_views(values: Mapping[str, Tensor], views: Mapping[str, View]) -> dict[str, Tensor]:
    """The values of owners and of their views."""
    return {**values, **{name: view.of(values[view.owner]) for name, view in views.items() if view.owner in values}}


def _views(owner: str, whole: Tensor, others: Mapping[str, Tensor]) -> dict[str, View]:
    views = {}
    for name, tensor in others.items():
        if _overlap(whole, tensor):
            views[name] = _view(owner, whole, name, tensor)
    return views


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether the spans of two tensors in one storage overlap."""
    return bool(first.storage_offset() < _end(second) and second.storage_offset() < _end(first))


def _end(tensor: Tensor) -> int:
    span: int = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset()) + span + 1


def _view(owner: str, whole: Tensor, name: str, tensor: Tensor) -> View:
    start, shape, trains = tensor.storage_offset() - whole.storage_offset(), tuple(tensor.shape), tensor.requires_grad
    if start == 0 and tensor.ndim == whole.ndim and tensor.numel() == whole.numel():
        for axes in permutations(range(whole.ndim)):
            transposed = whole.permute(axes)
            if transposed.shape == tensor.shape and transposed.stride() == tensor.stride():
                return View(owner, axes, None, shape, trains)
    if whole.is_contiguous() and tensor.is_contiguous() and start >= 0 and _end(tensor) <= _end(whole):
        return View(owner, (), start, shape, trains)
    raise SharedStorage(
        f"{owner} and {name} share memory in a way that cannot be trained as one.",
        context=f"shapes {list(whole.shape)} and {shape}, strides {whole.stride()} and {tensor.stride()}",
        hint="give one of them its own memory: parameter.data = parameter.data.clone().",
    )
