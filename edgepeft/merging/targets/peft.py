"""An adapter directory of Hugging Face ``peft``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgepeft.merging.target import Merging, Target


@dataclass(frozen=True)
class Peft(Target):
    """A directory for ``PeftModel.from_pretrained(base, out)``, of a bundle made of a ``PeftModel``."""

    name: ClassVar[str] = "peft"
    marker: ClassVar[str | None] = "adapter_config.json"
    accepts_stacks: ClassVar[bool] = True

    def write(self, merging: Merging, out: Path) -> str:
        from edgepeft.merging.to_peft import write

        return write(merging.bundle, merging.parameters, out)
