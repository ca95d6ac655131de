"""The files: in which package each one is, and inputs on which it means something."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Input:
    """An input: its shape, and how its values are drawn.

    Attributes:
        shape: of the array.
        low, high: range of the values, whole numbers where ``dtype`` is an integer.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Input:
        """Read ``dtype[shape] low..high``."""
        found = re.fullmatch(r"(\w+)\[([\d,]*)\] (\S+)\.\.(\S+)", text)
        assert found is not None, text
        shape = tuple(int(size) for size in found[2].split(",") if size)
        return cls(shape, float(found[3]), float(found[4]), found[1])

    def drawn(self, seed: int) -> Array:
        draw = np.random.default_rng(seed)
        if np.dtype(self.dtype).kind in "iub":
            return np.asarray(draw.integers(int(self.low), int(self.high), self.shape)).astype(self.dtype)
        return draw.uniform(self.low, self.high, self.shape).astype(self.dtype)


@dataclass(frozen=True)
class PublicFile:
    """An ``.onnx`` file that a package contains.

    Attributes:
        package: its name.
        path: of the file within the package's archive.
        loss: by name.
        inputs: how its inputs are drawn, by name.
        outputs: names of the outputs for the loss; default: the file's.
    """

    package: str
    path: str
    inputs: Mapping[str, str]
    loss: str = "mse"
    outputs: tuple[str, ...] = ()
    _drawn: dict[str, Array] = field(default_factory=dict, compare=False)

    def example(self) -> dict[str, Array]:
        """The inputs by name."""
        if not self._drawn:
            for at, (name, given) in enumerate(self.inputs.items()):
                self._drawn[name] = Input.parse(given).drawn(at)
        return self._drawn


def read_files() -> list[PublicFile]:
    """All of them, in the order of ``files.toml``."""
    with Path(__file__).with_name("files.toml").open("rb") as source:
        return [PublicFile(**entry) for entry in tomllib.load(source)["file"]]
