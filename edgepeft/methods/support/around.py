"""Wrappers around a layer that have the layer's attributes, because models read its sizes, strides and weights."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from edgepeft.methods.support.attached_pair import AttachedPair


class Around(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """A layer with something added. Missing attributes are those of the layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def pairs(self) -> Iterator[AttachedPair]:
        """Yield the low-rank pairs that were added; without any, aggregation and merging take whole tensors."""
        yield from ()

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def answer_as_base(model: nn.Module) -> nn.Module:
    """Give peft's wrappers the attributes of the layers inside them, in place.

    They have ``weight`` and ``bias``, but not ``stride`` or other attributes that the model's code may read.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module, nn.Module) and "base_layer" in module._modules:
            module.__class__ = _answering(type(module))
    return model


def _answering(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of the same name with ``_of_base``, or the class itself if it is one already."""
    if kind.__getattr__ is not nn.Module.__getattr__:
        return kind
    return type(
        kind.__name__, (kind,), {"__getattr__": _of_base, "__module__": kind.__module__, "__reduce_ex__": _reduced}
    )


def _of_base(self: nn.Module, name: str) -> object:
    try:
        return nn.Module.__getattr__(self, name)
    except AttributeError:
        return getattr(nn.Module.__getattr__(self, "base_layer"), name)


def _reduced(self: nn.Module, _protocol: int) -> tuple[object, ...]:
    """Pickle by peft's class, because the subclass has no name that a reader could look up."""
    return _empty, (type(self).__bases__[0],), self.__getstate__()


def _empty(kind: type[nn.Module]) -> nn.Module:
    module = nn.Module.__new__(kind)
    module.__class__ = _answering(kind)
    return module
