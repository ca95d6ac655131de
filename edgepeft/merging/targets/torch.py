"""A state dict of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgepeft.merging.target import Merging, Target


@dataclass(frozen=True)
class Torch(Target):
    """A state dict of what trained, under the model's own names, for ``load_state_dict(state, strict=False)``."""

    name: ClassVar[str] = "torch"
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth", ".safetensors")

    def write(self, merging: Merging, out: Path) -> str:
        from edgepeft.merging.to_torch import write

        return write(merging.bundle, merging.parameters, out)
