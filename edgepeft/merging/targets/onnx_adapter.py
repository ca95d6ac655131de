"""An adapter file of ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgepeft.merging.target import Merging, Target, check_target
from edgepeft.merging.targets.onnx import Onnx
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class OnnxAdapter(Target):
    """An ``.onnx_adapter`` for ``onnxruntime.LoraAdapter``, put on the model per call.

    The Python package of ONNX Runtime needs the ``base`` graph: there, inputs that an adapter provides have to be
    optional.
    """

    name: ClassVar[str] = "onnx-adapter"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx_adapter",)
    base: str | None = setting(None, "File to write the inference graph with default values to, which Python needs.")

    def check(self, out: Path, overwrite: bool) -> None:
        super().check(out, overwrite)
        if self.base is not None:
            check_target(Path(self.base), Onnx(), overwrite)

    def write(self, merging: Merging, out: Path) -> str:
        from edgepeft.merging.to_onnx_adapter import write, write_base

        done = write(merging.bundle, merging.parameters, out)
        if self.base is not None:
            write_base(merging.bundle, Path(self.base))
        return done
