"""The small networks of bottleneck adapters, and the wrappers that put them after a layer or parallel to several."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from edgepeft.methods.support.around import Around

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_PARALLEL_SCALE = 4.0


@dataclass(frozen=True)
class Shape:
    """The reduction of a bottleneck's width, and the name of its activation."""

    reduction: float
    activation: str

    def made(self, inputs: int, outputs: int, kernel: int = 0) -> Bottleneck:
        """Return a bottleneck; ``kernel`` is the number of dimensions of a convolution's kernel."""
        hidden = max(1, round(inputs / self.reduction))
        return Bottleneck(inputs, hidden, outputs, _ACTIVATIONS[self.activation], kernel)


def put_after(model: nn.Module, name: str, shape: Shape) -> None:
    """Put a bottleneck after the layer of that name, in place."""
    layer = model.get_submodule(name)
    width = _width(layer)
    model.set_submodule(name, After(layer, shape.made(width, width, _rank(layer))))


def put_parallel(model: nn.Module, first: str, last: str, shape: Shape) -> None:
    """Put a bottleneck parallel to a part of a block, from the input of its first layer to the output of its last."""
    reader = Reader(model.get_submodule(first))
    model.set_submodule(first, reader)
    layer = model.get_submodule(last)
    model.set_submodule(last, Parallel(layer, shape.made(_input_width(reader.base), _width(layer)), reader))


def added_to(model: nn.Module) -> list[str]:
    """Return the names of the bottlenecks in a model."""
    return [name for name, module in model.named_modules() if isinstance(module, Bottleneck)]


def fits(module: nn.Module) -> bool:
    """Whether a bottleneck can be put after a layer."""
    plain = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or type(module).__name__ == "Conv1D"
    return isinstance(module, (nn.LSTM, nn.GRU)) or (plain and getattr(module, "groups", 1) == 1)


class Bottleneck(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """down, f, up: matrices over the last axis, or 1x1 kernels over the channels of an image."""

    def __init__(self, inputs: int, hidden: int, outputs: int, activation: type[nn.Module], kernel: int) -> None:
        super().__init__()
        if kernel:
            conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[kernel - 1]
            self.down, self.up = conv(inputs, hidden, 1), conv(hidden, outputs, 1)
        else:
            self.down, self.up = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x)))


class After(Around):
    """A layer and an adapter after it; for a recurrent layer, after its sequence of states."""

    def __init__(self, base: nn.Module, adapter: Bottleneck) -> None:
        super().__init__(base)
        self.adapter = adapter

    def forward(self, *args: object, **kwargs: object) -> object:
        result = self.base(*args, **kwargs)
        if isinstance(result, Tensor):
            return result + self.adapter(result)
        states, *last = result
        if isinstance(states, PackedSequence):
            return (states._replace(data=states.data + self.adapter(states.data)), *last)
        return (states + self.adapter(states), *last)


class Reader(Around):
    """A layer that stores its last input."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.input: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.input = x
        return self.base(x)


class Parallel(Around):
    """The last layer of a part, and an adapter that reads the input of the part's first layer."""

    def __init__(self, base: nn.Module, adapter: Bottleneck, reader: Reader) -> None:
        super().__init__(base)
        self.adapter = adapter
        self._reader = (reader,)  # in a tuple, because it is a module of the model under its own name

    def forward(self, x: Tensor) -> Tensor:
        read, self._reader[0].input = self._reader[0].input, None
        return self.base(x) + _PARALLEL_SCALE * self.adapter(read)


def _rank(layer: nn.Module) -> int:
    """Return the number of the kernel's dimensions; 0 for a layer over the last axis."""
    return len(layer.kernel_size) if hasattr(layer, "kernel_size") else 0


def _width(layer: nn.Module) -> int:
    """Return the number of channels or features of a layer's output."""
    if isinstance(layer, (nn.LSTM, nn.GRU)):
        return (getattr(layer, "proj_size", 0) or layer.hidden_size) * (2 if layer.bidirectional else 1)
    for name in ("out_features", "out_channels", "nf"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    raise AssertionError(type(layer).__name__)


def _input_width(layer: nn.Module) -> int:
    """Return the number of features that a linear layer reads."""
    return int(layer.in_features) if hasattr(layer, "in_features") else int(layer.weight.shape[0])
