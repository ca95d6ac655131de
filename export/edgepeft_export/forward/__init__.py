"""Every source of a model ends here: a forward ONNX graph, and the names of the inputs of it that train."""

from importlib import import_module
from typing import TYPE_CHECKING

from edgepeft_export.forward.graph import Forward, without_training
from edgepeft_export.forward.onnx_source.file import from_onnx

if TYPE_CHECKING:
    from edgepeft_export.forward.torch_source.module import from_torch

__all__ = ["Forward", "from_onnx", "from_torch", "without_training"]


def __getattr__(name: str) -> object:
    # An .onnx source needs no torch: import it only for those who ask for it.
    if name == "from_torch":
        return getattr(import_module("edgepeft_export.forward.torch_source.module"), name)
    raise AttributeError(name)
