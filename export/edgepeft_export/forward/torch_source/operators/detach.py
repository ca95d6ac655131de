"""Preserves in an export where gradients stop, because ONNX cannot express ``Tensor.detach`` and ``padding_idx``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset
from torch import Tensor, nn

from edgepeft_export.forward.function_mode import Function, FunctionMode
from edgepeft_export.graph.custom_ops import DOMAIN, STOP_GRADIENT


@torch.library.custom_op("edgepeft::stop_gradient", mutates_args=())  # type: ignore[untyped-decorator]
def _stop_gradient(x: Tensor) -> Tensor:
    return x.clone()


@_stop_gradient.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class KeepDetach(FunctionMode):
    """While active, ``x.detach()`` adds a node to the traced graph.

    So does the row ``padding_idx`` of a trainable embedding table, because that row gets no gradient in torch.

    Args:
        trained: tensors that train.
    """

    def __init__(self, trained: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self._trained = trained

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        if function is Tensor.detach and args[0].is_floating_point():
            return _stop_gradient(args[0])
        result = function(*args, **kwargs)
        if function is nn.functional.embedding:
            return self._without_padding(result, *args, **kwargs)
        return result

    def _without_padding(
        self, rows: Tensor, ids: Tensor, weight: Tensor, padding_idx: int | None = None, *_: object, **__: object
    ) -> Tensor:
        if padding_idx is None or not any(weight is tensor for tensor in self._trained):
            return rows
        return torch.where((ids == padding_idx % len(weight))[..., None], _stop_gradient(rows), rows)


_FLOATS = ["tensor(float)", "tensor(double)", "tensor(float16)"]
_SCHEMA = OpSchema(
    STOP_GRADIENT,
    DOMAIN,
    1,
    inputs=[OpSchema.FormalParameter("x", "T")],
    outputs=[OpSchema.FormalParameter("y", "T")],
    type_constraints=[("T", _FLOATS, "")],
)


def _translated(x: ir.Value) -> object:
    return Op(Opset(DOMAIN, 1), STOP_GRADIENT, _SCHEMA)(x)


TRANSLATION = {torch.ops.edgepeft.stop_gradient.default: _translated}
"""For ``torch.onnx.export(custom_translation_table=…)``."""
