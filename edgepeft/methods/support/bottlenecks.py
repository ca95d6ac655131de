"""The small networks of bottleneck adapters, and the wrappers that put them behind a layer or beside some."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from edgepeft.methods.support.around import Around

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_PARALLEL_SCALE = 4.0


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


class Behind(Around):
    """A layer and an adapter behind it; of a recurrent layer, behind its sequence of states."""

    def __init__(self, base: nn.Module, adapter: Bottleneck) -> None:
        super().__init__(base)
        self.adapter = adapter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.base(*args, **kwargs)
        if isinstance(result, Tensor):
            return result + self.adapter(result)
        states, *last = result
        if isinstance(states, PackedSequence):
            return (states._replace(data=states.data + self.adapter(states.data)), *last)
        return (states + self.adapter(states), *last)


class Reader(Around):
    """A layer whose last input can be read."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.input: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.input = x
        return self.base(x)


class Beside(Around):
    """The last layer of a part, and an adapter of what the part's first layer read."""

    def __init__(self, base: nn.Module, adapter: Bottleneck, reader: Reader) -> None:
        super().__init__(base)
        self.adapter = adapter
        self._reader = (reader,)  # in a tuple: it is a module of the model at its own place

    def forward(self, x: Tensor) -> Tensor:
        read, self._reader[0].input = self._reader[0].input, None
        return self.base(x) + _PARALLEL_SCALE * self.adapter(read)
